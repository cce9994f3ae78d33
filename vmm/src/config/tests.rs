use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Settings, ConfigError> {
    file::parse(text, "guest.toml".as_ref())
}

fn run(text: &str) -> Result<RunConfig, ConfigError> {
    RunConfig::new(Settings::default(), parse(text)?)
}

const EVERY_KEY: &str = r#"
kernel = "bzImage"
initrd = "initrd.gz"
cmdline = "console=ttyS0 quiet"
memory = "2G"
cpus = 4
backend = "kvm"
kvm-device = "/dev/kvm2"
irqchip = "split"
boot-compressed = true
memory-backing = "file=ram.img"
no-mmio-cache = true
no-reboot = true
stats = "json"
stats-file = "stats.json"
log = "debug"
"#;

#[test]
fn file_with_every_key_is_understood() {
    let config = run(EVERY_KEY).unwrap();
    assert_eq!(
        config,
        RunConfig {
            kernel: "bzImage".into(),
            initrd: Some("initrd.gz".into()),
            cmdline: "console=ttyS0 quiet".into(),
            machine: MachineConfig {
                deterministic: None,
                watch: false,
                memory: ByteSize::mib(2048),
                cpus: 4,
                backend: BackendChoice::Kvm,
                kvm_device: "/dev/kvm2".into(),
                irqchip: IrqchipChoice::Split,
                memory_backing: MemoryBacking::File("ram.img".into()),
                mmio_cache: false,
                fallback: true,
                stats: Some(StatsFormat::Json),
                stats_file: Some("stats.json".into()),
                log: Some("debug".into()),
            },
            boot_compressed: true,
            reboot: false,
        }
    );
}

#[test]
fn flags_win_over_file() {
    let flags = Settings {
        memory: Some(ByteSize::mib(64)),
        no_mmio_cache: Some(false),
        kernel: Some("other".into()),
        ..Settings::default()
    };
    let config = RunConfig::new(flags, parse(EVERY_KEY).unwrap()).unwrap();
    assert_eq!(config.machine.memory, ByteSize::mib(64));
    assert!(config.machine.mmio_cache);
    assert_eq!(config.kernel.to_str(), Some("other"));
    assert_eq!(config.machine.cpus, 4, "what the flags don't say is the file's");
}

#[test]
fn nothing_said_gives_the_defaults() {
    let config = run(r#"kernel = "k""#).unwrap();
    assert_eq!(config.machine.memory, DEFAULT_MEMORY);
    assert_eq!(config.machine.cpus, 1);
    assert_eq!(config.cmdline, DEFAULT_CMDLINE);
    assert!(config.machine.mmio_cache && config.reboot && !config.boot_compressed);
    assert_eq!(config.machine.stats, None);
}

#[test]
fn unknown_key_is_refused_with_its_place() {
    let message = parse("kernel = \"k\"\nmemroy = \"1G\"\n").unwrap_err().to_string();
    assert!(
        message.starts_with("guest.toml:2:1: unknown field `memroy`"),
        "{message}"
    );
    assert!(message.contains("`memory`"), "{message}");
}

#[test]
fn wrong_value_is_refused_with_its_place() {
    for (text, place, part) in [
        ("memory = 512", "1:10", "string"),
        ("memory = \"512\"", "1:10", "did you mean 512M?"),
        ("cpus = \"two\"", "1:8", "two"),
        ("cpus = -1", "1:8", "-1"),
        ("backend = \"xen\"", "1:11", "`xen` is not one of auto, kvm"),
        ("memory-backing = \"file=\"", "1:18", "file=PATH"),
        ("\n\nkernel", "3:7", ""),
    ] {
        let message = parse(text).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("guest.toml:{place}: ")) && message.contains(part),
            "{text}: {message}"
        );
        assert_eq!(message.lines().count(), 1);
    }
}

#[test]
fn values_outside_their_limits_are_refused() {
    let message = |line: &str| run(&format!("kernel = \"k\"\n{line}\n")).unwrap_err().to_string();
    assert!(message("memory = \"1K\"").contains("at least 2M"));
    assert!(message("memory = \"64T\"").contains("at most 32T"));
    assert!(message("memory = \"2097153B\"").contains("multiple of 4K"));
    assert!(message("memory = \"3M\"\nmemory-backing = \"hugetlb\"").contains("multiple of 2M"));
    assert!(message("cpus = 0").contains("1 to 254"));
    assert!(message("cpus = 255").contains("1 to 254"));
    assert!(message("cmdline = \"a\\u0000b\"").contains("position 1"));
    assert!(run("").unwrap_err().to_string().contains("no kernel given"));
}

#[test]
fn deterministic_run_has_a_date_and_turns() {
    let deterministic = |text: &str| run(&format!("kernel = \"k\"\n{text}")).unwrap().machine.deterministic;
    assert_eq!(deterministic("deterministic = false"), None);
    let usual = deterministic("deterministic = true").unwrap();
    assert_eq!(
        (usual.rtc, usual.quantum.get(), usual.trace),
        (Date::DEFAULT, DEFAULT_QUANTUM, None)
    );
    let said =
        deterministic("deterministic = true\nbackend = \"soft\"\nrtc = \"2030-02-03\"\nquantum = 7\ntrace = \"t\"")
            .unwrap();
    assert_eq!((said.rtc, said.quantum.get()), ("2030-02-03".parse().unwrap(), 7));
    assert_eq!(said.trace, Some("t".into()));
}

#[test]
fn deterministic_run_that_cannot_be_is_refused() {
    let message = |text: &str| run(&format!("kernel = \"k\"\n{text}")).unwrap_err().to_string();
    for backend in ["kvm", "shadow"] {
        let text = message(&format!("deterministic = true\nbackend = \"{backend}\""));
        assert!(text.contains(&format!("--backend {backend}")), "{text}");
    }
    for quantum in [0, MAX_QUANTUM + 1, u64::from(u32::MAX) << 20] {
        let text = message(&format!("deterministic = true\nquantum = {quantum}"));
        assert!(text.contains("1 to 1000000000"), "{text}");
    }
    for (key, flag) in [
        ("rtc = \"2026-01-01\"", "--rtc"),
        ("quantum = 1", "--quantum"),
        ("trace = \"t\"", "--trace"),
    ] {
        assert_eq!(message(key), format!("{flag} is for --deterministic runs only"));
    }
    assert!(message("rtc = \"soon\"").contains("`soon` is not a date"));
}

#[test]
fn stats_file_alone_asks_for_stats() {
    let config = run("kernel = \"k\"\nstats-file = \"s\"").unwrap();
    assert_eq!(config.machine.stats, Some(StatsFormat::Text));
}

#[test]
fn paths_are_relative_to_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.toml");
    std::fs::write(&path, EVERY_KEY).unwrap();
    let settings = file::read(&path).unwrap();
    assert_eq!(settings.kernel, Some(directory.path().join("bzImage")));
    assert_eq!(settings.kvm_device, Some("/dev/kvm2".into()), "an absolute path stays");
    assert_eq!(
        settings.memory_backing,
        Some(MemoryBacking::File(directory.path().join("ram.img")))
    );
}

#[test]
fn missing_file_is_named() {
    let message = file::read("/nonexistent/guest.toml".as_ref()).unwrap_err().to_string();
    assert!(message.contains("/nonexistent/guest.toml: No such file"), "{message}");
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_valid(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz_body(&bytes);
    }

    #[test]
    fn any_values_are_refused_or_valid(
        memory in "[0-9]{1,12}[KMGTBx]?", cpus: i64, backing in "(anon|hugetlb|file=)[a-z]{0,2}", key in "[a-z-]{1,8}",
    ) {
        let text = format!("kernel = \"k\"\nmemory = \"{memory}\"\ncpus = {cpus}\nmemory-backing = \"{backing}\"\n");
        fuzz_body(text.as_bytes());
        fuzz_body(format!("kernel = \"k\"\n{key} = true").as_bytes());
    }
}
