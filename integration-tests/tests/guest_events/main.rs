//! Stock KVM with shadow paging and our shadow MMU do the same, event for event, for the same guest programs. See
//! `docs/conformance.md`. Needs the lab: KVM on AMD without nested paging, and its tracepoints.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION is told a raw address")]

mod kernel;

use kvm_ioctls::Kvm;
use umbra_integration_tests::events::program::Program;
use umbra_integration_tests::events::{difference, model, normal, programs};
use umbra_integration_tests::trace::{Event, Session};

const EVENTS: [&str; 2] = ["kvmmmu", "kvm/kvm_page_fault"];

/// A KVM that can be asked, or why there is none.
fn oracle() -> Result<(Kvm, Session), String> {
    if std::env::var_os("UMBRA_LAB").is_none() {
        return Err("not in the lab, which is for comparing with stock KVM".to_owned());
    }
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm: {error}"))?;
    let npt = std::fs::read_to_string("/sys/module/kvm_amd/parameters/npt").unwrap_or_default();
    if npt.trim() != "N" {
        return Err("this KVM does not shadow page tables (kvm_amd.npt)".to_owned());
    }
    // Small pages stay small.
    std::fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "never").map_err(|error| error.to_string())?;
    let session = Session::start(&EVENTS).map_err(|error| error.to_string())?;
    Ok((kvm, session))
}

#[test]
fn programs_same_events_as_kvm() {
    let (kvm, session) = match oracle() {
        Ok(oracle) => oracle,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let mut failed = Vec::new();
    for program in programs::all() {
        match compare(&kvm, &session, &program) {
            Ok(verdict) => println!("{}: {verdict}", program.name),
            Err(what) => {
                println!("{}:\n{what}", program.name);
                failed.push(program.name);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// Compares the events of a program.
fn compare(kvm: &Kvm, session: &Session, program: &Program) -> Result<String, String> {
    // What goes on when the last VM goes.
    session.take().map_err(|error| error.to_string())?;
    let kernel = kernel::run(kvm, session, program).map_err(|error| format!("on KVM: {error}"))?;
    let kernel = normal::normalise(kernel);
    let ours = normal::normalise(model::run(program).map_err(|error| format!("on Umbra: {error}"))?);
    match (difference::first(&kernel, &ours), program.differs) {
        (None, None) => Ok(format!("{} events, the same", ours.len())),
        (None, Some(differs)) => Err(format!("no difference, but docs/conformance.md tells of {differs:?}")),
        (Some(difference), Some(differs)) if difference.is(&differs) => Ok("differs as is known".to_owned()),
        (Some(difference), _) => Err(difference.to_string()),
    }
}

#[test]
fn programs_on_the_model_are_about_what_they_say() {
    for program in programs::all() {
        let events = model::run(&program).unwrap_or_else(|error| panic!("{}: {error}", program.name));
        let text: Vec<String> = events.iter().map(|event: &Event| format!("{event:x?}")).collect();
        for about in program.about {
            assert!(
                text.iter().any(|event| event.contains(about)),
                "{}: nothing of {about} in\n{}",
                program.name,
                text.join("\n")
            );
        }
    }
}
