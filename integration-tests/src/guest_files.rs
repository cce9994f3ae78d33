//! What guests boot, in the lab: one place for the names, so that who puts a file there and who boots it agree.

/// The `vmm` binary.
pub const VMM: &str = "/lab/vmm";
/// Debian's stock cloud kernel.
pub const BZIMAGE: &str = "/lab/guest/bzImage";
/// The ELF file out of it; its PVH note makes the vmm start it that way.
pub const VMLINUX: &str = "/lab/guest/vmlinux";
/// The same without its PVH note: it is started by the 64-bit boot protocol.
pub const VMLINUX_64: &str = "/lab/guest/vmlinux-64";
/// An initramfs with busybox.
pub const INITRD: &str = "/lab/guest/initrd";
/// A multiboot1 kernel, ELF32.
pub const MULTIBOOT_32: &str = "/lab/guest/multiboot32";
/// The same, ELF64.
pub const MULTIBOOT_64: &str = "/lab/guest/multiboot64";
/// The small kernel that the start-up figures are taken with.
pub const SMALL_VMLINUX: &str = "/lab/guest/small-vmlinux";
/// The same as a bzImage.
pub const SMALL_BZIMAGE: &str = "/lab/guest/small-bzImage";
/// An initramfs with nothing but [`crate::linux_init`].
pub const TINY_INITRD: &str = "/lab/guest/tiny-initrd";
