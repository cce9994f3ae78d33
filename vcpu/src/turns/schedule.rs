//! Who runs next and for how long.

use super::trace::{Event, Moment};
use super::{Alarms, Bell, CountedVcpu, SharedTrace};
use crate::backend::Kick;
use crate::control::Control;
use crate::exit::VmEntry;
use crate::handle::ExitHandler;
use crate::platform::Platform;
use crate::run_loop::{self, Reply, VcpuEnd};
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use umbra_devices::{Clock, ManualClock};
use umbra_mmu::MmuObserver;

/// What becomes of time in which all vCPUs rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// It takes no time: the next alarm goes off at once. If none is set, nothing can ever happen again, and the guest has
    /// halted for ever.
    Skip,
    /// It is slept, because something may come from outside meanwhile. What comes, comes when it does: such a run is the
    /// same as another only up to there.
    Sleep,
}

/// What vCPUs need to take turns.
#[derive(Clone)]
pub struct TurnOptions {
    /// Instructions of a turn. Another quantum is another run: as good, but different as soon as there are several vCPUs.
    pub quantum: NonZeroU64,
    /// What becomes of idle time.
    pub idle: Idle,
    /// The time, which the vCPUs move.
    pub clock: Arc<ManualClock>,
    /// What happens at a time.
    pub alarms: Arc<dyn Alarms>,
    /// Who is told of an alarm that is set.
    pub bell: Bell,
    /// What is to be told about the run.
    pub trace: SharedTrace,
}

/// The least that time goes on, so that it does.
const STEP: Duration = Duration::from_nanos(1);

/// The machine's clock goes no further in leaps: an alarm after that (292 years) never goes off. What is left until the
/// clock ends is as long again in instructions.
const NEVER: Duration = Duration::from_nanos(u64::MAX / 2);

/// The vCPUs of a machine that take turns.
pub(crate) struct Turns<V, O> {
    vcpus: Vec<(V, ExitHandler<O>)>,
    platform: Arc<dyn Platform>,
    control: Arc<Control>,
    options: TurnOptions,
    /// Whose turn it is.
    turn: usize,
}

impl<V: CountedVcpu, O: MmuObserver> Turns<V, O> {
    pub fn new(
        mut vcpus: Vec<(V, ExitHandler<O>)>,
        platform: Arc<dyn Platform>,
        control: Arc<Control>,
        options: TurnOptions,
    ) -> Self {
        let others = vcpus.len() > 1;
        for (vcpu, _) in &mut vcpus {
            vcpu.join(&options.bell, others);
        }
        let kicks: Box<[Box<dyn Kick>]> = vcpus.iter().map(|(vcpu, _)| vcpu.kick_handle()).collect();
        options.bell.set_kicks(kicks);
        Self {
            vcpus,
            platform,
            control,
            options,
            turn: 0,
        }
    }

    /// The body of the thread: whatever happens, everybody hears of the end of each vCPU.
    pub fn run_to_the_end(mut self) {
        let unix_time = self.options.clock.unix_time();
        let quantum = self.options.quantum.get();
        let trace = self.options.trace.clone();
        trace.lock().begin(self.vcpus.len(), quantum, unix_time);
        let end = catch_unwind(AssertUnwindSafe(|| self.run()))
            .unwrap_or_else(|panic| VcpuEnd::Panicked(run_loop::message(&*panic)));
        let whose = self.turn;
        self.note_progress(whose);
        let moment = self.moment(whose);
        trace.lock().event(moment, &Event::end(&end));
        tracing::debug!(vcpu = whose, %end, "the machine ended");
        let mut end = Some(end);
        // The one that ended first: the others end because of it.
        let order = std::iter::once(whose).chain((0..self.vcpus.len()).filter(|index| *index != whose));
        for index in order {
            let Some((vcpu, handler)) = self.vcpus.get_mut(index) else {
                continue;
            };
            let end = end.take().unwrap_or(VcpuEnd::Stopped);
            run_loop::report_end(number(index), vcpu, handler, end, &self.control, &*self.platform);
        }
    }

    /// Gives out turns until the guest ends, the host fails or somebody says stop.
    fn run(&mut self) -> VcpuEnd {
        loop {
            // What rang before is seen below.
            self.options.bell.quiet();
            if !self.go_on() {
                return VcpuEnd::Stopped;
            }
            let wait = self.options.alarms.tick();
            let ended = match self.next() {
                Some(next) => {
                    self.turn = next;
                    let ended = self.take_turn(wait);
                    if ended.is_none() {
                        self.turn = (next + 1) % self.vcpus.len();
                    }
                    ended
                }
                None => self.rest(wait),
            };
            if let Some(end) = ended {
                return end;
            }
        }
    }

    /// Does what is wanted from outside. Says whether to go on.
    fn go_on(&self) -> bool {
        let stats = |vcpu: u32| {
            let vcpu = usize::try_from(vcpu).ok().and_then(|vcpu| self.vcpus.get(vcpu));
            vcpu.map(|(_, handler)| handler.stats()).unwrap_or_default()
        };
        self.control.answer_all(stats)
    }

    /// Whoever doesn't rest, beginning with whose turn it would be.
    fn next(&self) -> Option<usize> {
        let count = self.vcpus.len();
        let awake = |index: &usize| self.vcpus.get(*index).is_some_and(|(vcpu, _)| !vcpu.rests());
        (self.turn..count).chain(0..self.turn).find(awake)
    }

    /// All rest: time goes on without them.
    fn rest(&self, wait: Option<Duration>) -> Option<VcpuEnd> {
        let now = self.options.clock.monotonic();
        let wait = wait.filter(|wait| now.saturating_add(*wait) < NEVER);
        let passed = match (self.options.idle, wait) {
            (Idle::Skip, None) => return Some(VcpuEnd::Halted),
            (Idle::Skip, Some(wait)) => wait,
            (Idle::Sleep, wait) => {
                let slept = self.options.bell.wait(wait);
                wait.map_or(slept, |wait| slept.min(wait))
            }
        };
        self.options.clock.advance(passed.max(STEP));
        None
    }

    /// The turn of one vCPU, in slices from alarm to alarm.
    fn take_turn(&mut self, mut wait: Option<Duration>) -> Option<VcpuEnd> {
        let mut left = self.options.quantum.get();
        loop {
            let until_alarm = wait.map_or(u64::MAX, |wait| u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
            let slice = left.min(until_alarm).max(1);
            let spent = match self.slice(slice) {
                Ok(spent) => spent,
                Err(end) => return Some(end),
            };
            left = left.saturating_sub(spent);
            let (vcpu, _) = self.vcpus.get_mut(self.turn)?;
            let kicked = vcpu.was_kicked();
            if vcpu.gives_way() || vcpu.rests() || left == 0 {
                self.note_progress(self.turn);
                return None;
            }
            if spent == 0 && !kicked {
                // It comes out at once and nobody has asked it to: time goes on without it, until something has changed.
                self.options.clock.advance(STEP);
                return None;
            }
            if !self.go_on() {
                return Some(VcpuEnd::Stopped);
            }
            let alarm = self.options.bell.take_alarm();
            wait = if alarm || spent >= slice {
                self.options.alarms.tick()
            } else {
                // Somebody looked in from outside. For the guest this is no moment at which anything happens.
                wait.map(|wait| wait.saturating_sub(Duration::from_nanos(spent)))
            };
        }
    }

    /// Runs the vCPU whose turn it is for so many instructions, or less if it comes out. Says how many they were.
    fn slice(&mut self, instructions: u64) -> Result<u64, VcpuEnd> {
        let index = self.turn;
        self.options.bell.turn_of(index);
        let Some((vcpu, handler)) = self.vcpus.get_mut(index) else {
            return Ok(0);
        };
        let before = vcpu.executed();
        vcpu.stop_after(instructions);
        let mut entry = VmEntry::Resume;
        loop {
            let exit = vcpu.run(entry).map_err(VcpuEnd::Host)?;
            let moment = Moment {
                time: self.options.clock.monotonic(),
                vcpu: number(index),
                executed: vcpu.executed(),
            };
            let trace = &self.options.trace;
            vcpu.take_deliveries(&mut |delivery| {
                let ago = moment.executed.saturating_sub(delivery.executed);
                let then = Moment {
                    time: moment.time.saturating_sub(Duration::from_nanos(ago)),
                    executed: delivery.executed,
                    ..moment
                };
                trace.lock().event(then, &Event::Delivered(delivery.what));
            });
            let reply = run_loop::reply(number(index), &exit, vcpu, handler, &*self.platform);
            let answer = match reply {
                Reply::Enter(entry) => Some(entry),
                Reply::Poll | Reply::End(_) => None,
            };
            if let Some(event) = Event::of(&exit, answer) {
                trace.lock().event(moment, &event);
            }
            match reply {
                Reply::Enter(next) => entry = next,
                Reply::Poll => return Ok(vcpu.executed().saturating_sub(before)),
                Reply::End(end) => return Err(end),
            }
        }
    }

    fn note_progress(&self, index: usize) {
        let Moment { time, executed, .. } = self.moment(index);
        self.options.trace.lock().progress(index, executed, time);
    }

    fn moment(&self, index: usize) -> Moment {
        Moment {
            time: self.options.clock.monotonic(),
            vcpu: number(index),
            executed: self.vcpus.get(index).map_or(0, |(vcpu, _)| vcpu.executed()),
        }
    }
}

/// A vCPU's number, of which there are few.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
