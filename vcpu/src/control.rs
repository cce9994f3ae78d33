//! Stopping, pausing and questioning running vCPUs, and hearing that they did.
//!
//! All of it goes through one lock that the exit path never takes: a vCPU looks here only when a kick got it out of the
//! guest. A request is written under the lock *before* the kick, and a kick is never lost ([`crate::backend::Kick`]),
//! so a vCPU that is in the guest, in `hlt` or just between two exits comes here after the request was made.
//! Since it comes here with [`crate::exit::VmExit::Interrupted`], no instruction of its guest is half done.

use crate::backend::{Kick, ShadowTables};
use crate::regs::{Regs, SystemRegs};
use crate::run_loop::VcpuEnd;
use crate::stats::VcpuStats;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What all vCPUs of a machine are asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

/// What one vCPU does.
enum State {
    Running,
    Paused,
    Ended,
}

/// What a vCPU was like when its thread ended.
#[derive(Clone, Debug)]
pub struct FinalState {
    /// General-purpose registers.
    pub regs: Regs,
    /// System registers.
    pub system: SystemRegs,
    /// The tables that it ran on, if those are ours.
    pub tables: Option<ShadowTables>,
}

struct Member {
    kick: Box<dyn Kick>,
    state: State,
    /// The number of the last question that was answered.
    answered: u64,
    stats: VcpuStats,
    end: Option<VcpuEnd>,
    last: Option<FinalState>,
}

struct Group {
    wanted: Wanted,
    /// Number of the last question for statistics.
    asked: u64,
    members: Vec<Member>,
    /// Who ended first.
    first: Option<u32>,
}

/// The control of all vCPUs of one machine.
pub struct Control {
    group: Mutex<Group>,
    changed: Condvar,
}

/// Some vCPUs did not do in time what they were asked to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotAcknowledged {
    /// Which, by number.
    pub vcpus: Vec<u32>,
    /// How long they were given.
    pub timeout: Duration,
}

impl fmt::Display for NotAcknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU ")?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            write!(f, "{}{vcpu}", if index == 0 { "" } else { ", " })?;
        }
        write!(
            f,
            " did not answer within {:?}: it hangs in a device, or the host is overloaded",
            self.timeout
        )
    }
}

impl std::error::Error for NotAcknowledged {}

impl Control {
    /// For vCPUs with these kick handles, numbered from 0.
    pub fn new(kicks: impl IntoIterator<Item = Box<dyn Kick>>) -> Self {
        let members = kicks
            .into_iter()
            .map(|kick| Member {
                kick,
                state: State::Running,
                answered: 0,
                stats: VcpuStats::default(),
                end: None,
                last: None,
            })
            .collect();
        Self {
            group: Mutex::new(Group {
                wanted: Wanted::Run,
                asked: 0,
                members,
                first: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// Takes every vCPU out of the guest and returns when all of them wait (or have ended).
    ///
    /// # Errors
    /// Not all of them did in time; those that did go on.
    pub fn pause(&self, timeout: Duration) -> Result<(), NotAcknowledged> {
        let mut group = self.lock();
        if group.wanted == Wanted::Run {
            group.wanted = Wanted::Pause;
        }
        group.kick_all();
        let result = self.wait_for(group, timeout, |_, member| !matches!(member.state, State::Running));
        if result.is_err() {
            self.resume();
        }
        result
    }

    /// Lets paused vCPUs go on.
    pub fn resume(&self) {
        let mut group = self.lock();
        if group.wanted == Wanted::Pause {
            group.wanted = Wanted::Run;
        }
        // Here and not by each of them when it wakes up: a pause that follows at once must not take their old state
        // for an answer.
        for member in &mut group.members {
            if matches!(member.state, State::Paused) {
                member.state = State::Running;
            }
        }
        self.changed.notify_all();
    }

    /// Ends every vCPU, paused ones too; final. Returns at once, see [`Control::wait_all`].
    pub fn stop(&self) {
        let mut group = self.lock();
        group.wanted = Wanted::Stop;
        group.kick_all();
        self.changed.notify_all();
    }

    /// What every vCPU counted so far, by number; of one that ended, all that it counted.
    ///
    /// # Errors
    /// Not all of them answered in time.
    pub fn stats(&self, timeout: Duration) -> Result<Vec<VcpuStats>, NotAcknowledged> {
        let mut group = self.lock();
        group.asked += 1;
        let question = group.asked;
        group.kick_all();
        // Those that are paused sleep in `answer`.
        self.changed.notify_all();
        self.wait_for(group, timeout, |_, member| {
            member.answered >= question || matches!(member.state, State::Ended)
        })?;
        Ok(self.last_stats())
    }

    /// What every vCPU last told: at an earlier [`Control::stats`], or when it ended.
    pub fn last_stats(&self) -> Vec<VcpuStats> {
        self.lock().members.iter().map(|member| member.stats.clone()).collect()
    }

    /// Waits until a vCPU ends by itself, which ends the others too, and says which did; `None` if `timeout` passes.
    /// Without a timeout it waits for ever.
    pub fn wait_first(&self, timeout: Option<Duration>) -> Option<u32> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut group = self.lock();
        loop {
            if group.first.is_some() {
                return group.first;
            }
            group = self.sleep(group, deadline)?;
        }
    }

    /// Waits until every vCPU has ended.
    ///
    /// # Errors
    /// Not all of them did in time.
    pub fn wait_all(&self, timeout: Duration) -> Result<(), NotAcknowledged> {
        self.wait_for(self.lock(), timeout, |_, member| matches!(member.state, State::Ended))
    }

    /// Takes out how a vCPU ended; `None` if it has not, or was asked already.
    pub fn take_end(&self, vcpu: u32) -> Option<VcpuEnd> {
        self.lock().member(vcpu)?.end.take()
    }

    /// Takes out what a vCPU was like when it ended; `None` if it has not, could not say, or was asked already.
    pub fn take_state(&self, vcpu: u32) -> Option<FinalState> {
        self.lock().member(vcpu)?.last.take()
    }

    /// Called by vCPU `vcpu`'s thread after a kick: does what is wanted. Returns whether to run on; `stats` is asked
    /// only if somebody wants to know.
    pub(crate) fn answer(&self, vcpu: u32, stats: impl Fn() -> VcpuStats) -> bool {
        self.answer_for(Some(vcpu), |_| stats())
    }

    /// The same, called by the one thread of all vCPUs.
    pub(crate) fn answer_all(&self, stats: impl Fn(u32) -> VcpuStats) -> bool {
        self.answer_for(None, stats)
    }

    fn answer_for(&self, vcpu: Option<u32>, stats: impl Fn(u32) -> VcpuStats) -> bool {
        let mut group = self.lock();
        loop {
            let question = group.asked;
            let wanted = group.wanted;
            let mut news = false;
            let asked = (0..).zip(&mut group.members);
            for (number, member) in asked.filter(|(number, _)| vcpu.is_none_or(|vcpu| vcpu == *number)) {
                if member.answered < question {
                    member.answered = question;
                    member.stats = stats(number);
                    news = true;
                }
                if wanted == Wanted::Pause && matches!(member.state, State::Running) {
                    member.state = State::Paused;
                    news = true;
                }
            }
            if news {
                self.changed.notify_all();
            }
            match wanted {
                Wanted::Run => return true,
                Wanted::Stop => return false,
                Wanted::Pause => {}
            }
            group = self.changed.wait(group).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Called when vCPU `vcpu`'s thread is about to end: the others end too.
    pub(crate) fn ended(&self, vcpu: u32, end: VcpuEnd, stats: VcpuStats, last: Option<FinalState>) {
        let mut group = self.lock();
        let by_itself = !matches!(end, VcpuEnd::Stopped);
        if let Some(member) = group.member(vcpu) {
            member.state = State::Ended;
            member.end = Some(end);
            member.last = last;
            member.stats = stats;
        }
        if by_itself {
            group.first.get_or_insert(vcpu);
            group.wanted = Wanted::Stop;
            group.kick_all();
        }
        self.changed.notify_all();
    }

    /// A panic of whoever held the lock leaves plain values behind: every one of them is a valid state.
    fn lock(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until something changes; `None` when the deadline has passed.
    fn sleep<'a>(&self, group: MutexGuard<'a, Group>, deadline: Option<Instant>) -> Option<MutexGuard<'a, Group>> {
        let Some(deadline) = deadline else {
            return Some(self.changed.wait(group).unwrap_or_else(PoisonError::into_inner));
        };
        let left = deadline
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())?;
        Some(
            self.changed
                .wait_timeout(group, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0,
        )
    }

    fn wait_for(
        &self,
        mut group: MutexGuard<'_, Group>,
        timeout: Duration,
        done: impl Fn(u32, &Member) -> bool,
    ) -> Result<(), NotAcknowledged> {
        let deadline = Instant::now() + timeout;
        loop {
            let missing: Vec<u32> = (0..)
                .zip(&group.members)
                .filter(|(id, member)| !done(*id, member))
                .map(|(id, _)| id)
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            match self.sleep(group, Some(deadline)) {
                Some(again) => group = again,
                None => {
                    return Err(NotAcknowledged {
                        vcpus: missing,
                        timeout,
                    });
                }
            }
        }
    }
}

impl Group {
    fn member(&mut self, vcpu: u32) -> Option<&mut Member> {
        self.members.get_mut(usize::try_from(vcpu).ok()?)
    }

    fn kick_all(&self) {
        for member in &self.members {
            if !matches!(member.state, State::Ended) {
                member.kick.kick();
            }
        }
    }
}
