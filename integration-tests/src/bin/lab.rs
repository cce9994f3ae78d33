//! Runs the lab and prints its report. `integration-tests/lab/run` calls this after installing what it needs.

use std::process::ExitCode;
use umbra_integration_tests::lab::host::Host;
use umbra_integration_tests::lab::qemu::Machine;
use umbra_integration_tests::lab::{plan, run};

fn main() -> ExitCode {
    match lab() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::from(2)
        }
    }
}

fn lab() -> Result<bool, Box<dyn std::error::Error>> {
    let host = Host::find()?;
    let programs = plan::kvm_tests()?;
    let mut good = true;
    for npt in [true, false] {
        let name = format!("tests-npt{}", u8::from(npt));
        let run = run(&host, &name, &Machine::for_tests(npt), &programs, &[])?;
        println!("{run}\n");
        good &= run.is_good();
    }
    Ok(good)
}
