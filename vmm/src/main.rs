//! The `vmm` binary.

fn main() -> std::process::ExitCode {
    umbra_vmm::app::main()
}
