//! What the run loop asks of the machine around it.

use umbra_devices::Effect;

/// The machine as a vCPU's thread sees it. Implemented by the VMM and by recorders in tests.
///
/// Every method is called on the thread of a vCPU with no lock held, while the guest's instruction waits for its answer:
/// what it does is visible to the guest's next instruction.
pub trait Platform: Send + Sync {
    /// Carries out a change of the machine's layout that a device asked for: never [`Effect::PowerOff`],
    /// [`Effect::Reset`], [`Effect::Exit`] or [`Effect::All`], which the loop takes care of itself.
    ///
    /// A change that is refused is for the implementation to log: the guest caused it and goes on without it.
    fn apply(&self, vcpu: u32, effect: Effect);

    /// The guest acknowledged an interrupt that an I/O APIC of ours sent as this vector (split irqchip only).
    fn end_of_interrupt(&self, vector: u8);

    /// The loop of this vCPU is over; how is in [`crate::control::Control`]. For those who wait for descriptors and not
    /// for [`crate::control::Control::wait_first`].
    fn ended(&self, _vcpu: u32) {}
}
