//! `vmm doctor`: what this host can do for a guest, and why not where it can't.
//!
//! [`facts`] looks, [`text`] shows it to people; `--json` is the facts as they are.

pub mod facts;
pub mod text;

use crate::exit_status::ExitStatus;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

/// Looks at the host and prints what there is. The status says whether a guest could be run.
///
/// # Errors
/// Standard output can't be written.
pub fn run(kvm_device: &Path, json: bool) -> io::Result<ExitStatus> {
    let facts = facts::gather(kvm_device);
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &facts)?;
        writeln!(out)?;
    } else {
        let style = crate::style::Style::for_stream(io::stdout().is_terminal());
        out.write_all(text::render(&facts, style).as_bytes())?;
    }
    Ok(if facts.kvm.usable() {
        ExitStatus::Success
    } else {
        ExitStatus::Host
    })
}
