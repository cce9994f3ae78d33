//! Local APICs so naive that they are plainly right, to hold the real ones against: lists of interrupts, searched whole.

use crate::access::{IoOp, IoSize};
use crate::clock::ManualClock;
use crate::device::{Device, IoOutcome};
use crate::irq::{DeliveryMode, IntrSource, Message, MsiSink};
use crate::models::lapic::{ApicBus, CpuEvent, EoiListener, regs};
use crate::sync::lock;
use std::sync::{Arc, Mutex};

/// CPUs of the model.
pub const CPUS: u8 = 4;
const SPURIOUS: u8 = 0xff;

/// One step of a history. CPU numbers are taken modulo [`CPUS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicStep {
    /// A CPU sends an IPI.
    Ipi {
        /// Which.
        cpu: u8,
        /// Delivery mode, three bits.
        mode: u8,
        /// Shorthand, two bits.
        shorthand: u8,
        /// Whether the destination is a set.
        logical: bool,
        /// The destination.
        to: u8,
        /// The vector.
        vector: u8,
    },
    /// A message from outside.
    Message {
        /// Delivery mode, three bits.
        mode: u8,
        /// Whether the destination is a set.
        logical: bool,
        /// The destination.
        to: u8,
        /// The vector.
        vector: u8,
        /// Whether it is level-triggered.
        level: bool,
    },
    /// A CPU takes an interrupt, whether there is one or not.
    Acknowledge {
        /// Which.
        cpu: u8,
    },
    /// A CPU takes an NMI, INIT or start-up interrupt, if there is one.
    TakeEvent {
        /// Which.
        cpu: u8,
    },
    /// A CPU ends its interrupt.
    End {
        /// Which.
        cpu: u8,
    },
    /// A CPU sets its task priority.
    Priority {
        /// Which.
        cpu: u8,
        /// The priority.
        tpr: u8,
    },
    /// A CPU switches its APIC on or off in software, and sets its logical identifier.
    Enable {
        /// Which.
        cpu: u8,
        /// On.
        on: bool,
    },
}

#[derive(Clone, Default)]
struct NaiveApic {
    on: bool,
    set: u8,
    tpr: u8,
    /// Vectors, and whether they are level-triggered, which the last request decides also for one in service.
    requested: Vec<u8>,
    in_service: Vec<u8>,
    level: Vec<u8>,
    init: bool,
    start_up: Option<u8>,
    nmi: bool,
}

impl NaiveApic {
    fn class(vectors: &[u8]) -> u8 {
        vectors.iter().max().map_or(0, |vector| vector / 16)
    }

    fn pending(&self) -> Option<u8> {
        let vector = *self.requested.iter().max()?;
        let busy = Self::class(&self.in_service).max(self.tpr / 16);
        (self.on && vector / 16 > busy).then_some(vector)
    }

    fn receive(&mut self, mode: DeliveryMode, vector: u8, level: bool) {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if self.on && vector >= 16 => {
                self.requested.retain(|other| *other != vector);
                self.requested.push(vector);
                self.level.retain(|other| *other != vector);
                if level {
                    self.level.push(vector);
                }
            }
            DeliveryMode::Nmi => self.nmi = true,
            DeliveryMode::StartUp => self.start_up = Some(vector),
            DeliveryMode::Init => {
                *self = Self {
                    init: true,
                    ..Self::default()
                }
            }
            _ => {}
        }
    }
}

/// What the I/O APIC would hear.
#[derive(Default)]
struct Ends(Mutex<Vec<u8>>);

impl EoiListener for Ends {
    fn end_of_interrupt(&self, vector: u8) {
        lock(&self.0).push(vector);
    }
}

/// The naive APICs and the real ones, side by side.
pub struct ApicPair {
    real: Arc<ApicBus>,
    ends: Arc<Ends>,
    naive: [NaiveApic; CPUS as usize],
}

impl Default for ApicPair {
    fn default() -> Self {
        let real = ApicBus::new(CPUS.into(), Arc::new(ManualClock::default()), 1_000_000_000);
        let ends = Arc::new(Ends::default());
        let listener: Arc<dyn EoiListener> = Arc::clone(&ends) as _;
        real.set_listener(Arc::downgrade(&listener));
        Self {
            real,
            ends,
            naive: Default::default(),
        }
    }
}

impl ApicPair {
    /// Makes one step on both.
    ///
    /// # Panics
    /// They differ.
    pub fn step(&mut self, step: ApicStep) {
        match step {
            ApicStep::Ipi {
                cpu,
                mode,
                shorthand,
                logical,
                to,
                vector,
            } => {
                let cpu = cpu % CPUS;
                let set = if logical { regs::ICR_LOGICAL } else { 0 };
                let low = u32::from(vector) | u32::from(mode & 7) << 8 | u32::from(shorthand & 3) << 18 | set;
                self.write(cpu, regs::ICR_HIGH, u32::from(to) << 24);
                self.write(cpu, regs::ICR, low);
                self.ipi(cpu, mode & 7, shorthand & 3, logical, to, vector);
            }
            ApicStep::Message {
                mode,
                logical,
                to,
                vector,
                level,
            } => {
                let mode = DeliveryMode::from_bits(mode.into());
                let message = Message {
                    destination: to,
                    logical,
                    mode,
                    vector,
                    level,
                };
                self.real.deliver(message.to_msi());
                let meant: Vec<_> = (0..CPUS).filter(|cpu| self.is_meant(*cpu, logical, to)).collect();
                self.send(&meant, mode, vector, level);
            }
            ApicStep::Acknowledge { cpu } => {
                let cpu = cpu % CPUS;
                let naive = &mut self.naive[usize::from(cpu)];
                let expected = naive.pending();
                if let Some(vector) = expected {
                    naive.requested.retain(|other| *other != vector);
                    naive.in_service.push(vector);
                }
                let got = self.apic(cpu).acknowledge();
                assert_eq!(got, expected.unwrap_or(SPURIOUS), "{step:?}");
            }
            ApicStep::TakeEvent { cpu } => {
                let cpu = cpu % CPUS;
                let naive = &mut self.naive[usize::from(cpu)];
                let expected = if std::mem::take(&mut naive.init) {
                    Some(CpuEvent::Init)
                } else if let Some(vector) = naive.start_up.take() {
                    Some(CpuEvent::StartUp(vector))
                } else {
                    std::mem::take(&mut naive.nmi).then_some(CpuEvent::Nmi)
                };
                assert_eq!(self.apic(cpu).take_event(true), expected, "{step:?}");
            }
            ApicStep::End { cpu } => {
                let cpu = cpu % CPUS;
                self.write(cpu, regs::EOI, 0);
                let naive = &mut self.naive[usize::from(cpu)];
                let ended = naive.in_service.iter().max().copied();
                naive.in_service.retain(|vector| Some(*vector) != ended);
                let told: Vec<_> = ended
                    .into_iter()
                    .filter(|vector| naive.level.contains(vector))
                    .collect();
                assert_eq!(std::mem::take(&mut *lock(&self.ends.0)), told, "{step:?}");
            }
            ApicStep::Priority { cpu, tpr } => {
                self.write(cpu % CPUS, regs::TPR, tpr.into());
                self.naive[usize::from(cpu % CPUS)].tpr = tpr;
            }
            ApicStep::Enable { cpu, on } => {
                let cpu = cpu % CPUS;
                let enabled = if on { regs::SVR_ENABLED } else { 0 };
                self.write(cpu, regs::SVR, enabled | u32::from(SPURIOUS));
                self.write(cpu, regs::LDR, 1 << (24 + cpu));
                let naive = &mut self.naive[usize::from(cpu)];
                (naive.on, naive.set) = (on, 1 << cpu);
            }
        }
        for (apic, naive) in self.real.apics().iter().zip(&self.naive) {
            assert_eq!(apic.is_pending(), naive.pending().is_some(), "{step:?} {apic:?}");
            let event = naive.init || naive.start_up.is_some() || naive.nmi;
            assert_eq!(apic.has_event(true), event, "{step:?} {apic:?}");
        }
    }

    fn apic(&self, cpu: u8) -> &crate::models::lapic::LocalApic {
        &self.real.apics()[usize::from(cpu)]
    }

    fn write(&self, cpu: u8, register: u16, value: u32) {
        let outcome = self
            .apic(cpu)
            .access(register.into(), IoSize::B4, IoOp::Write(value.into()));
        assert_eq!(outcome, IoOutcome::Done);
    }

    fn is_meant(&self, cpu: u8, logical: bool, to: u8) -> bool {
        to == 0xff
            || if logical {
                to & self.naive[usize::from(cpu)].set != 0
            } else {
                to == cpu
            }
    }

    fn ipi(&mut self, sender: u8, mode: u8, shorthand: u8, logical: bool, to: u8, vector: u8) {
        let mode = DeliveryMode::from_bits(mode.into());
        // Refused by the sender: vectors below 16, and anything but an ordinary interrupt to itself by shorthand.
        let ordinary = matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if ordinary && vector < 16 || shorthand == 1 && mode != DeliveryMode::Fixed {
            return;
        }
        let meant: Vec<_> = (0..CPUS)
            .filter(|cpu| match shorthand {
                0 => self.is_meant(*cpu, logical, to),
                1 => *cpu == sender,
                2 => true,
                _ => *cpu != sender,
            })
            .collect();
        self.send(&meant, mode, vector, false);
    }

    fn send(&mut self, meant: &[u8], mode: DeliveryMode, vector: u8, level: bool) {
        if mode == DeliveryMode::LowestPriority {
            let priority = |cpu: &u8| {
                let apic = &self.naive[usize::from(*cpu)];
                let class = (apic.tpr / 16)
                    .max(NaiveApic::class(&apic.requested))
                    .max(NaiveApic::class(&apic.in_service));
                let is_task = apic.tpr / 16 >= NaiveApic::class(&apic.requested)
                    && apic.tpr / 16 > NaiveApic::class(&apic.in_service);
                (class, if is_task { apic.tpr % 16 } else { 0 })
            };
            let on = meant.iter().filter(|cpu| self.naive[usize::from(**cpu)].on);
            if let Some(&cpu) = on.min_by_key(|cpu| priority(cpu)) {
                self.naive[usize::from(cpu)].receive(mode, vector, level);
            }
            return;
        }
        for cpu in meant {
            self.naive[usize::from(*cpu)].receive(mode, vector, level);
        }
    }
}
