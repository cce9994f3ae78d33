//! The command line: what `vmm --help` says.

use crate::config::{BackendChoice, IrqchipChoice, Settings, StatsFormat};
use crate::delay::Delay;
use crate::exit_status;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

// The texts fit 80 columns: wrapped examples can't be read.
const EXAMPLES: &str = "\
Examples:
  vmm                                  run the built-in guest
  vmm doctor                           what can this host do for a guest?
  vmm run bzImage --initrd initrd.gz   boot Linux, its console on this terminal
  vmm run vmlinux -m 2G -c 4 --cmdline 'console=ttyS0 quiet'
  vmm run --config guest.toml -m 4G    flags win over the file
  vmm run bzImage --watch              see what the MMU does meanwhile
  vmm mmu dump --svg tables.svg        the built-in guest's page tables

While a guest has the terminal: Ctrl-a h helps, Ctrl-a x ends the guest.";

const RUN_EXAMPLES: &str = "\
Examples:
  vmm run /boot/vmlinuz --initrd /boot/initrd.img -m 1G -c 2
  vmm run kernel.elf --initrd module.bin --cmdline 'test=all'
  vmm run bzImage --no-reboot --stats-file stats.txt < /dev/null
  vmm run bzImage --deterministic --trace a.txt --stats < commands.txt
  vmm run --config guest.toml -m 4G

A guest.toml (every flag is a key, paths are relative to the file):
  kernel = \"bzImage\"
  initrd = \"initrd.gz\"
  cmdline = \"console=ttyS0 quiet\"
  memory = \"512M\"
  cpus = 2

Twice the same (a guest on several CPUs, too): run the example of it again
with `--trace b.txt`; then `cmp a.txt b.txt` finds no difference, and
both tell the same number of instructions and digest. Another --quantum lets
the CPUs meet in another order. What is typed at a terminal comes when it
comes: use a file or a pipe for input that is to be the same.

Keys, when standard input is a terminal:
  Ctrl-a h  help                 Ctrl-a x  end the guest
  Ctrl-a s  statistics           Ctrl-a p  pause and resume
  Ctrl-a a  a literal Ctrl-a

`vmm --help` lists the exit statuses.";

const DUMP_EXAMPLES: &str = "\
Examples:
  vmm mmu dump                    the built-in guest, when it has ended
  vmm mmu dump --svg tables.svg   and drawn
  vmm mmu dump bzImage --initrd initrd.gz --after 5s > tables.txt

x, w, u: executable, writable, for users; A, D: accessed, dirty (a, d: some
of them). Runs of alike entries are one line. An MMIO entry is fresh if it
was made at the present generation of the memory slots, otherwise stale.";

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    name = "vmm",
    version,
    about = "A virtual machine monitor made of layers you can take one by one",
    long_about = "Umbra's virtual machine monitor. Without a command it runs the built-in guest: a small program in this \
                  binary that shows on the local KVM what recognising MMIO without searching is worth.",
    max_term_width = 120,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What to do; the built-in guest when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of the built-in guest.
    #[command(flatten)]
    pub builtin: BuiltinArgs,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Boot a kernel
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Say what this host can do for a guest, and why not where it can't
    Doctor(DoctorArgs),
    /// Look at page tables
    #[command(subcommand)]
    Mmu(MmuCommand),
}

/// What can be looked at.
#[derive(Subcommand, Debug)]
pub enum MmuCommand {
    /// Run a guest (the built-in one if no kernel is named) and print its page tables in the end, beside what the MMU made
    #[command(after_help = DUMP_EXAMPLES)]
    Dump(DumpArgs),
}

/// Flags of `vmm mmu dump`.
#[derive(Args, Debug)]
#[command(args_override_self = true)]
pub struct DumpArgs {
    /// The guest: as for `vmm run`, or the built-in one if no kernel is named. Its console goes to standard error.
    #[command(flatten)]
    pub run: RunArgs,
    /// Stop the guest after this time, such as 2s or 500ms; otherwise when it ends by itself or Ctrl-a x ends it
    #[arg(long, value_name = "TIME", help_heading = "Dump")]
    pub after: Option<Delay>,
    /// The vCPU whose tables are wanted
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Dump")]
    pub vcpu: u32,
    /// Draw them to this file as well
    #[arg(long, value_name = "FILE", help_heading = "Dump")]
    pub svg: Option<PathBuf>,
}

/// Flags of `vmm run`.
#[derive(Args, Debug)]
#[command(args_override_self = true)]
pub struct RunArgs {
    /// What can also stand in the configuration file.
    #[command(flatten)]
    pub settings: Settings,
    /// Read what isn't said by flags from this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Flags of the built-in guest: those of `vmm run` that make sense without a kernel.
#[derive(Args, Debug)]
pub struct BuiltinArgs {
    /// What executes the guest: kvm, soft (a CPU in software), shadow (user mode on KVM with our page tables, the rest in
    /// software), or auto: kvm if it can run this guest, else soft, and why [default: auto]
    #[arg(long, value_name = "NAME")]
    backend: Option<BackendChoice>,
    /// KVM device [default: /dev/kvm]
    #[arg(long, value_name = "PATH")]
    kvm_device: Option<PathBuf>,
    /// Interrupt controllers: kernel or split [default: kernel]
    #[arg(long, value_name = "WHERE")]
    irqchip: Option<IrqchipChoice>,
    /// Search slots and bus on every MMIO exit instead of remembering (compare the two)
    #[arg(long)]
    no_mmio_cache: bool,
    /// Do the same each time: time is the count of executed instructions, 1 ns each. On the software CPU only
    #[arg(long)]
    deterministic: bool,
    /// Write each device access, interrupt and exception of a deterministic run to this file, to be compared
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Show live what the MMU does, with the guest's console in a pane
    #[arg(long)]
    watch: bool,
    /// Let the guest do its work in user mode (always so with --backend shadow)
    #[arg(long)]
    pub user_mode: bool,
    /// Print full statistics as well: text or json [default when given alone: text]
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    stats: Option<StatsFormat>,
    /// Write the statistics to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    stats_file: Option<PathBuf>,
    /// Log to standard error; a tracing filter such as debug or umbra_vcpu=trace,info
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl BuiltinArgs {
    /// The same as settings of a machine.
    pub fn into_settings(self) -> Settings {
        Settings {
            backend: self.backend,
            kvm_device: self.kvm_device,
            irqchip: self.irqchip,
            no_mmio_cache: Some(self.no_mmio_cache),
            deterministic: Some(self.deterministic),
            trace: self.trace,
            watch: Some(self.watch),
            stats: self.stats,
            stats_file: self.stats_file,
            log: self.log,
            ..Settings::default()
        }
    }
}

/// Flags of `vmm doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print one JSON object instead of a report for people
    #[arg(long)]
    pub json: bool,
    /// KVM device
    #[arg(long, value_name = "PATH", default_value = crate::config::settings::DEFAULT_KVM_DEVICE)]
    pub kvm_device: PathBuf,
}

impl Cli {
    /// Parses a command line, the program's name included.
    ///
    /// # Errors
    /// What is wrong with it, or the text of `--help` and `--version`; `clap::Error::exit_code` tells them apart.
    pub fn parse_from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let command = Self::command().after_help(format!("{EXAMPLES}\n\n{}", exit_status::TABLE));
        Self::from_arg_matches(&command.try_get_matches_from(args)?)
    }
}

/// Whether this is a mistake, and no text that was asked for or that helps on.
pub fn is_mistake(error: &clap::Error) -> bool {
    error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// What is wrong with a command line, in one line as for any other mistake.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .map(|line| match line.strip_prefix("tip: ") {
            Some(tip) => format!("; {tip}"),
            None => format!(" {line}"),
        })
        .collect::<String>();
    let said = said.trim_start();
    format!(
        "{} (`vmm --help` tells more)",
        said.strip_prefix("error: ").unwrap_or(said)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::ByteSize;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::parse_from_args(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn clap_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_are_one_line() {
        for (line, said) in [
            ("vmm run k --memory 5Q", "'5Q'"),
            (
                "vmm run k --rtc yesterday",
                "invalid value 'yesterday' for '--rtc <DATE>'",
            ),
            ("vmm --stats=yaml", "`yaml` is not one of text, json"),
            ("vmm --trase x", "found; a similar argument exists: '--trace'"),
            ("vmm run a b", "unexpected argument 'b'"),
        ] {
            let text = one_line(&parse(line).unwrap_err());
            assert!(text.contains(said), "{line}: {text}");
            assert!(
                !text.contains('\n') && !text.contains("error:") && !text.contains("Usage"),
                "{text}"
            );
        }
    }

    #[test]
    fn bare_command_is_the_builtin_guest() {
        let cli = parse("vmm").unwrap();
        assert!(cli.command.is_none());
        let settings = parse("vmm --no-mmio-cache --stats=json")
            .unwrap()
            .builtin
            .into_settings();
        assert_eq!(settings.no_mmio_cache, Some(true));
        assert_eq!(settings.stats, Some(StatsFormat::Json));
    }

    #[test]
    fn run_takes_every_flag() {
        let line = "vmm run bzImage --initrd i --memory 1G -c 4 --backend kvm --irqchip split --boot-compressed \
                    --memory-backing file=ram --no-mmio-cache --stats --stats-file s --log debug --no-reboot --config f";
        let Some(Command::Run(run)) = parse(line).unwrap().command else {
            panic!("not run")
        };
        assert_eq!(run.settings.memory, Some(ByteSize::mib(1024)));
        assert_eq!(run.settings.boot_compressed, Some(true));
        assert_eq!(run.settings.stats, Some(StatsFormat::Text));
        assert_eq!(run.settings.kernel, Some("bzImage".into()));
        assert_eq!(run.config, Some("f".into()));
    }

    #[test]
    fn flag_can_say_no_to_the_file() {
        let Some(Command::Run(run)) = parse("vmm run k --no-mmio-cache=false").unwrap().command else {
            panic!("not run")
        };
        assert_eq!(run.settings.no_mmio_cache, Some(false));
    }

    #[test]
    fn mistakes_are_refused_with_status_2() {
        for line in [
            "vmm run k --memory 512",
            "vmm run k --cpus x",
            "vmm run k --backend xen",
            "vmm flie",
            "vmm --what",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert_eq!(parse("vmm --help").unwrap_err().exit_code(), 0);
    }

    #[test]
    fn examples_fit_80_columns() {
        for text in [EXAMPLES, RUN_EXAMPLES, DUMP_EXAMPLES, exit_status::TABLE] {
            assert!(text.lines().all(|line| line.chars().count() < 80), "{text}");
        }
    }

    #[test]
    fn help_tells_examples_and_exit_status() {
        let help = parse("vmm --help").unwrap_err().to_string();
        assert!(help.contains("Examples:") && help.contains("Exit status:") && help.contains("vmm doctor"));
        let help = parse("vmm run --help").unwrap_err().to_string();
        assert!(help.contains("guest.toml") && help.contains("Ctrl-a x"));
    }
}
