//! Getting a vCPU out of `KVM_RUN` from another thread, without ever losing a request.
//!
//! `KVM_RUN` returns `EINTR` when a signal is pending or when `kvm_run.immediate_exit` is set as it starts. A signal
//! alone can be lost (it may be delivered just before the ioctl); the flag alone does not stop a running guest. So:
//!
//! * A kick sets `requested`, then sends a signal to the thread that the vCPU is bound to.
//! * The signal's handler sets `immediate_exit` of whatever vCPU its thread has *armed*.
//! * A run arms, then looks at `requested` (and sets `immediate_exit` itself if it is set), then calls `KVM_RUN`,
//!   then disarms; `requested` is cleared only when `Interrupted` is about to be returned.
//!
//! Take any kick; its signal is delivered to the thread at some moment:
//! before arming – `requested` was set before the signal was sent, so the look after arming sees it;
//! between arming and `KVM_RUN` – the handler set `immediate_exit`, so `KVM_RUN` returns at once;
//! in `KVM_RUN` – the kernel returns `EINTR`;
//! after `KVM_RUN` – `requested` stays set and the next run sees it.
//! What remains is the binding: the first run on a thread stores the thread id and then looks at `requested`; a kick
//! sets `requested` and then loads the thread id. Both pairs are sequentially consistent, so either the kick finds the
//! thread or the run finds the request. The tests in `kick_model` walk through every order of these steps.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use crate::backend::Kick;

thread_local! {
    /// `immediate_exit` of the vCPU this thread is about to run or is running. Constant-initialised and without a
    /// destructor, so that a signal handler may touch it.
    static ARMED: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
    /// This thread's id, 0 until asked for.
    static THREAD_ID: Cell<i32> = const { Cell::new(0) };
}

/// Shared by a vCPU and its kick handles.
#[derive(Default)]
pub(super) struct KickState {
    /// A kick that no `Interrupted` has answered yet.
    requested: AtomicBool,
    /// Kernel id of the thread that runs the vCPU, 0 before the first run.
    thread: AtomicI32,
}

impl KickState {
    /// Whether a kick waits to be answered.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Called when `Interrupted` is about to be returned: every kick made so far is answered by it.
    pub fn acknowledge(&self) {
        self.requested.store(false, Ordering::SeqCst);
    }
}

/// The kick handle of a KVM vCPU.
pub(super) struct KvmKick(pub Arc<KickState>);

impl Kick for KvmKick {
    fn kick(&self) {
        self.0.requested.store(true, Ordering::SeqCst);
        let thread = self.0.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // A thread that is gone, or another of ours that got its number, is no harm: nothing is armed there.
            send_kick_signal(thread);
        }
    }
}

/// Makes the calling thread the one that kicks go to. To be called before each run; costs a comparison when nothing
/// changed.
///
/// # Errors
/// The signal handler could not be installed or the signal not be unblocked.
pub(super) fn bind(state: &KickState, bound: &mut i32) -> io::Result<()> {
    let thread = thread_id();
    if *bound == thread {
        return Ok(());
    }
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        vmm_sys_util::signal::register_signal_handler(signal_number(), on_kick).map_err(|error| error.errno())
    });
    installed.map_err(io::Error::from_raw_os_error)?;
    // A thread inherits its creator's mask, and a VMM's main thread often blocks everything.
    vmm_sys_util::signal::unblock_signal(signal_number()).map_err(|error| io::Error::other(format!("{error:?}")))?;
    state.thread.store(thread, Ordering::SeqCst);
    *bound = thread;
    Ok(())
}

/// While it lives, a kick signal delivered to this thread sets `immediate_exit` of one vCPU.
pub(super) struct Armed(PhantomData<*const AtomicU8>);

impl Armed {
    /// Arms this thread.
    ///
    /// # Safety
    /// `immediate_exit` must stay valid until the guard is dropped, and the guard must be dropped on this thread.
    pub unsafe fn new(immediate_exit: *const AtomicU8) -> Self {
        ARMED.set(immediate_exit);
        // The handler runs on this very thread: the compiler must not move what follows above this line.
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        Self(PhantomData)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        ARMED.set(ptr::null());
    }
}

/// The signal: the first real-time one, which neither libc nor Rust's runtime uses.
fn signal_number() -> libc::c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let armed = ARMED.get();
    if !armed.is_null() {
        // SAFETY: set by `Armed::new` on this thread, whose guard still lives or it would be null.
        unsafe { &*armed }.store(1, Ordering::Relaxed);
    }
}

fn thread_id() -> i32 {
    let known = THREAD_ID.get();
    if known != 0 {
        return known;
    }
    // SAFETY: takes no argument and cannot fail.
    let id = unsafe { libc::gettid() };
    THREAD_ID.set(id);
    id
}

fn send_kick_signal(thread: i32) {
    // SAFETY: takes no pointer. Cannot reach another process: the first argument is our own.
    let process = unsafe { libc::getpid() };
    // SAFETY: as above. Its failure (the thread is gone) needs no answer.
    let _ = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal_number()) };
}
