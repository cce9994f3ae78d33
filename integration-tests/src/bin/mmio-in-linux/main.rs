//! What MMIO SPTEs are worth to a whole operating system: boots Linux on the software CPU, whose page walker meets them,
//! with MMIO SPTEs and without (`--no-mmio-cache`), and tells how each access to a device was recognised and what that took.
//!
//! `usage: mmio-in-linux VMM [RUNS]`
//!
//! `VMM` is a vmm built with `--release`. Boots each kernel `RUNS` times (3) each way and takes the run whose recognitions
//! took the least time in all: whatever else the machine did only adds to it. Prints the table and puts it into
//! `docs/benchmarks.md`, between the marks of `mmio_in_linux`.

mod boot;
mod table;

use boot::Kernel;
use std::error::Error;
use std::path::PathBuf;
use umbra_integration_tests::lab::host::Host;
use umbra_integration_tests::lab::plan::small_kernel;
use umbra_integration_tests::page::{self, replace_section};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let vmm = arguments
        .next()
        .map(PathBuf::from)
        .ok_or("usage: mmio-in-linux VMM [RUNS]")?;
    let runs = match arguments.next() {
        Some(runs) => runs.to_str().ok_or("RUNS is a number")?.parse()?,
        None => 3,
    };
    let host = Host::find()?;
    let kernels = [
        Kernel {
            name: "small Linux",
            path: small_kernel()?.join("vmlinux"),
        },
        Kernel {
            name: "Debian's kernel",
            path: host.kernel.clone(),
        },
    ];
    let initrd = boot::initrd(&host)?;
    let mut rows = Vec::new();
    for kernel in &kernels {
        for remembers in [true, false] {
            let mut best: Option<boot::Figures> = None;
            for _ in 0..runs {
                let figures = boot::measure(&vmm, kernel, initrd.path(), remembers)?;
                best = match best {
                    Some(best) if best.total_ns() <= figures.total_ns() => Some(best),
                    _ => Some(figures),
                };
            }
            let figures = best.ok_or("no runs, no figures")?;
            rows.push((kernel.name, remembers, figures));
        }
    }
    let table = table::render(&rows);
    println!("{table}");
    let page = page::path();
    let text = std::fs::read_to_string(&page)?;
    std::fs::write(&page, replace_section(&text, "mmio_in_linux", &table)?)?;
    Ok(())
}
