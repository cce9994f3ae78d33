//! Our rules for memory slots against the kernel's: the same random requests to both, the same answer from both.
#![cfg(target_arch = "x86_64")]
#![expect(clippy::cast_possible_truncation, reason = "test code on a 64-bit host")]
#![expect(unsafe_code, reason = "the ioctl itself is the oracle")]

mod support;

use kvm_bindings::{kvm_userspace_memory_region, kvm_userspace_memory_region2};
use kvm_ioctls::VmFd;
use std::collections::BTreeMap;
use support::{Random, TestRam, host};
use umbra_memslots::{Backing, Gpa, GuestMemfd, Hva, SlotFlags, SlotLimits, SlotRequest, SlotTable};
use umbra_vcpu::kvm::{Capability, KvmVm, VmOptions};

const PAGE: u64 = 4096;
/// Virtual machines, and requests to each.
const MACHINES: u32 = 40;
const REQUESTS: u32 = 500;
/// Largest slot that is really made: the kernel keeps a word per page of it.
const MAX_PAGES: u64 = 64;

/// The kernel's answer: 0 or an errno.
fn ask_kernel(vm: &VmFd, request: &SlotRequest) -> i32 {
    let result = match request.guest_memfd {
        // SAFETY: the VM has no vCPU, so nothing ever follows the host address.
        None => unsafe {
            vm.set_user_memory_region(kvm_userspace_memory_region {
                slot: request.slot,
                flags: request.flags,
                guest_phys_addr: request.guest_phys_addr.get(),
                memory_size: request.memory_size,
                userspace_addr: request.userspace_addr.get(),
            })
        },
        // SAFETY: as above.
        Some(memfd) => unsafe {
            vm.set_user_memory_region2(kvm_userspace_memory_region2 {
                slot: request.slot,
                flags: request.flags,
                guest_phys_addr: request.guest_phys_addr.get(),
                memory_size: request.memory_size,
                userspace_addr: request.userspace_addr.get(),
                guest_memfd: memfd.fd,
                guest_memfd_offset: memfd.offset,
                ..Default::default()
            })
        },
    };
    result.map_or_else(|error| error.errno(), |()| 0)
}

/// Makes requests that are about half right, and wrong in every way there is a rule for.
struct Requests {
    random: Random,
    limits: SlotLimits,
    /// Whether the kernel has the new ioctl (since 6.8).
    new_ioctl: bool,
    /// Host memory to name.
    memory: u64,
    /// Slots that were accepted, to make changes of.
    made: BTreeMap<u32, SlotRequest>,
}

impl Requests {
    fn next(&mut self) -> SlotRequest {
        let mut request = match self.random.below(8) {
            // A change of something that exists: move, re-flag, repeat, delete.
            0..=3 if !self.made.is_empty() => {
                let keys: Vec<u32> = self.made.keys().copied().collect();
                self.made[&self.random.pick(&keys)]
            }
            _ => self.fresh(),
        };
        match self.random.below(12) {
            0 | 1 => request.memory_size = 0,
            2 => request.guest_phys_addr = self.gpa(),
            3 => request.flags ^= SlotFlags::LOG_DIRTY.bits(),
            4 => request.flags ^= SlotFlags::READ_ONLY.bits(),
            5 => self.spoil(&mut request),
            _ => {}
        }
        if self.random.chance(6) {
            self.spoil(&mut request);
        }
        request
    }

    fn fresh(&mut self) -> SlotRequest {
        let flags = self.random.pick(&[0, 0, 1, 2, 3]);
        let pages = 1 + self.random.below(MAX_PAGES);
        SlotRequest {
            slot: self.random.below(6) as u32 | self.random.pick(&[0, 0, 0, 1 << 16]),
            flags,
            guest_phys_addr: self.gpa(),
            memory_size: pages * PAGE,
            userspace_addr: Hva::new(self.memory + self.random.below(16) * PAGE),
            guest_memfd: (self.new_ioctl && self.random.chance(3)).then_some(GuestMemfd { fd: 0, offset: 0 }),
        }
    }

    /// Close together, so that slots overlap often.
    fn gpa(&mut self) -> Gpa {
        Gpa::new(0x10_0000 + self.random.below(300) * PAGE)
    }

    /// Makes one field wrong, or strange.
    fn spoil(&mut self, request: &mut SlotRequest) {
        let top = self.limits.max_gfn.base().get();
        let user_end = self.limits.user_address_limit.get();
        match self.random.below(6) {
            0 => {
                let slots = u32::from(self.limits.max_slots);
                request.slot = self.random.pick(&[
                    slots - 1,
                    slots,
                    slots | 1 << 16,
                    0xffff,
                    2 << 16,
                    0xffff_0000,
                    u32::MAX,
                ]);
            }
            // Not GUEST_MEMFD with the new ioctl: whether a descriptor is one, only the kernel can say.
            1 => {
                request.flags = self.random.pick(&[4, 8, 16, 1 << 16, 1 << 31, u32::MAX]);
                if request.flags & SlotFlags::GUEST_MEMFD.bits() != 0 {
                    request.guest_memfd = None;
                }
            }
            2 => {
                request.guest_phys_addr = Gpa::new(self.random.pick(&[
                    1,
                    0xfff,
                    0x10_0800,
                    top,
                    top - PAGE,
                    top + PAGE,
                    u64::MAX,
                    u64::MAX - 0xfff,
                    u64::MAX - 0x1fff,
                    1 << 63,
                    1 << 52,
                    0,
                ]));
            }
            3 => {
                request.memory_size = self.random.pick(&[
                    1,
                    PAGE - 1,
                    PAGE + 1,
                    (1 << 31) * PAGE,
                    ((1 << 31) + 1) * PAGE,
                    u64::MAX,
                    u64::MAX - 0xfff,
                    1 << 63,
                ]);
            }
            4 => {
                request.userspace_addr = Hva::new(self.random.pick(&[
                    0,
                    1,
                    PAGE,
                    self.memory + 8,
                    user_end,
                    user_end - PAGE,
                    user_end + PAGE,
                    1 << 47,
                    1 << 63,
                    u64::MAX - 0xfff,
                    self.memory | 1 << 62,
                ]));
            }
            _ => {
                request.guest_phys_addr = request.guest_phys_addr.wrapping_add(self.random.below(2) * 8);
                request.memory_size = request.memory_size.wrapping_add(self.random.below(2) * 8);
            }
        }
    }
}

#[test]
fn random_requests_get_the_kernels_errno() {
    let Some(host) = host() else { return };
    let ram = TestRam::new(((MAX_PAGES + 16) * PAGE) as usize);
    let mut refused = BTreeMap::<i32, u32>::new();
    let mut random = Some(Random::new("random slot requests"));
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    // Without a slot that is kept back.
    let options = VmOptions {
        fallback: false,
        ..VmOptions::default()
    };
    for machine in 0..MACHINES {
        // The limits are the ones our backend reads; the machine asked is a bare one, without slots of the kernel's own.
        let limits = KvmVm::new(&host, options).unwrap().slot_limits();
        let vm = kvm.create_vm().unwrap();
        let mut table = SlotTable::new(limits);
        let mut requests = Requests {
            random: random.take().unwrap(),
            limits,
            new_ioctl: host.cap(Capability::UserMemory2) != 0,
            memory: ram.start().get(),
            made: BTreeMap::new(),
        };
        for number in 0..REQUESTS {
            let request = requests.next();
            let ours = table.apply(request);
            let errno = ours.as_ref().map_or_else(|error| error.errno().raw(), |_| 0);
            let kernels = ask_kernel(&vm, &request);
            assert_eq!(
                errno, kernels,
                "machine {machine}, request {number}: {request:x?}\nours: {ours:?}\nslots: {:x?}",
                requests.made
            );
            *refused.entry(kernels).or_default() += 1;
            if kernels == 0 {
                match request.memory_size {
                    0 => drop(requests.made.remove(&request.slot)),
                    _ => drop(requests.made.insert(request.slot, request)),
                }
            }
        }
        random = Some(requests.random);
    }
    println!("answers (errno: count): {refused:?}");
    let count = |errno| refused.get(&errno).copied().unwrap_or(0);
    assert!(
        count(0) > 2000 && count(libc::EINVAL) > 2000 && count(libc::EEXIST) > 200,
        "{refused:?}"
    );
}
