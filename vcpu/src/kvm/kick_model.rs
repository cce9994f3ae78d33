//! The protocol of [`super::kick`] as a state machine, walked through in every order in which its steps can happen.
//!
//! The steps are those of the code, one memory access or system call each. The vCPU's thread and its signal handler
//! share a thread, so the handler runs whole between two steps. All accesses that cross threads are sequentially
//! consistent in the code, so every behaviour is an interleaving.

use std::collections::HashSet;

/// Where the vCPU's thread is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Vcpu {
    Bind,
    Arm,
    Look,
    Enter,
    Guest,
    /// Out of `KVM_RUN`, still armed; whether with `EINTR`.
    Leave(bool),
    /// Disarmed; `EINTR` is turned into `Interrupted`.
    Acknowledge,
}

/// Where a kicking thread is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kicker {
    Request,
    LoadThread,
    Signal,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    vcpu: Vcpu,
    kickers: [Kicker; 2],
    requested: bool,
    bound: bool,
    armed: bool,
    immediate_exit: bool,
    signal_pending: bool,
    /// Exits that the guest may still make by itself.
    own_exits: u8,
    /// Kicks begun that no `Interrupted` has followed.
    unanswered: bool,
}

/// The code's steps, and ways to get them wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Right,
    LookBeforeArming,
    NoFlag,
}

impl State {
    const START: Self = Self {
        vcpu: Vcpu::Bind,
        kickers: [Kicker::Request; 2],
        requested: false,
        bound: false,
        armed: false,
        immediate_exit: false,
        signal_pending: false,
        own_exits: 2,
        unanswered: false,
    };

    /// Every state that one step leads to.
    fn next(self, variant: Variant) -> Vec<Self> {
        let mut next = Vec::new();
        for index in 0..self.kickers.len() {
            next.extend(self.kicker_step(index));
        }
        if self.signal_pending {
            // The handler; in the guest the signal also ends KVM_RUN.
            let vcpu = if self.vcpu == Vcpu::Guest {
                Vcpu::Leave(true)
            } else {
                self.vcpu
            };
            let immediate_exit = self.immediate_exit || (self.armed && variant != Variant::NoFlag);
            next.push(Self {
                signal_pending: false,
                immediate_exit,
                vcpu,
                ..self
            });
        } else {
            next.extend(self.vcpu_step(variant));
        }
        next
    }

    fn kicker_step(mut self, index: usize) -> Option<Self> {
        self.kickers[index] = match self.kickers[index] {
            Kicker::Request => {
                self.requested = true;
                self.unanswered = true;
                Kicker::LoadThread
            }
            Kicker::LoadThread if self.bound => Kicker::Signal,
            Kicker::LoadThread => Kicker::Done,
            Kicker::Signal => {
                self.signal_pending = true;
                Kicker::Done
            }
            Kicker::Done => return None,
        };
        Some(self)
    }

    /// What the vCPU's thread does next; two outcomes where the guest may or may not exit by itself.
    fn vcpu_step(self, variant: Variant) -> Vec<Self> {
        let (first, second) = match variant {
            Variant::LookBeforeArming => (Vcpu::Look, Vcpu::Arm),
            _ => (Vcpu::Arm, Vcpu::Look),
        };
        let after = |step| if step == second { Vcpu::Enter } else { second };
        let one = |state| vec![state];
        match self.vcpu {
            Vcpu::Bind => one(Self {
                bound: true,
                immediate_exit: false,
                vcpu: first,
                ..self
            }),
            Vcpu::Arm => one(Self {
                armed: true,
                vcpu: after(Vcpu::Arm),
                ..self
            }),
            Vcpu::Look => {
                let immediate_exit = self.immediate_exit || (self.requested && variant != Variant::NoFlag);
                one(Self {
                    immediate_exit,
                    vcpu: after(Vcpu::Look),
                    ..self
                })
            }
            Vcpu::Enter if self.immediate_exit => one(Self {
                vcpu: Vcpu::Leave(true),
                ..self
            }),
            Vcpu::Enter => one(Self {
                vcpu: Vcpu::Guest,
                ..self
            }),
            Vcpu::Guest if self.own_exits > 0 => one(Self {
                own_exits: self.own_exits - 1,
                vcpu: Vcpu::Leave(false),
                ..self
            }),
            Vcpu::Guest => Vec::new(),
            Vcpu::Leave(interrupted) => {
                let vcpu = if interrupted { Vcpu::Acknowledge } else { Vcpu::Bind };
                one(Self {
                    armed: false,
                    vcpu,
                    ..self
                })
            }
            Vcpu::Acknowledge => one(Self {
                requested: false,
                unanswered: false,
                vcpu: Vcpu::Bind,
                ..self
            }),
        }
    }
}

/// Walks every interleaving; gives a state in which a kick is lost: everybody is done, the guest runs for ever.
fn lost_kick(variant: Variant) -> Option<State> {
    let mut seen = HashSet::from([State::START]);
    let mut todo = vec![State::START];
    while let Some(state) = todo.pop() {
        let next = state.next(variant);
        if next.is_empty() && state.unanswered {
            return Some(state);
        }
        todo.extend(next.into_iter().filter(|next| seen.insert(*next)));
    }
    None
}

#[test]
fn every_interleaving_ends_in_an_exit() {
    assert_eq!(lost_kick(Variant::Right), None);
}

#[test]
fn each_part_of_the_protocol_is_needed() {
    assert!(
        lost_kick(Variant::LookBeforeArming).is_some(),
        "the flag must be looked at after arming"
    );
    assert!(
        lost_kick(Variant::NoFlag).is_some(),
        "a signal alone is lost before KVM_RUN"
    );
}
