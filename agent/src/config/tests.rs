use super::*;

#[test]
fn nothing_given_is_the_documented_defaults() {
    let config = Settings::default().check().unwrap();
    assert_eq!(config.listen, "127.0.0.1:8000".parse().unwrap());
    assert_eq!(config.log_level, LogLevel::Info);
    assert_eq!(config.wan_interface, None);
    assert_eq!((config.lan_interface, config.external_bridge), (None, None));
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/telecluster"));
    assert_eq!(config.flow_metrics_max, 500);
    assert_eq!(config.flow_capacity, 131_072);
    assert_eq!(config.limits, Limits::default(), "nobody is held up who is not told so");
    assert_eq!(config.hold_down, HoldDown { seconds: 120, ports: 0 });
    assert_eq!(config.bpf_dir, PathBuf::from("/sys/fs/bpf/telecluster"));
}

#[test]
fn an_empty_value_is_an_unset_one() {
    let settings = Settings {
        port: Some(String::new()),
        log_level: Some(" ".into()),
        wan_interface: Some(String::new()),
        ..Settings::default()
    };
    assert_eq!(settings.check().unwrap(), Settings::default().check().unwrap());
}

#[test]
fn a_malformed_value_is_one_line_that_names_the_variable() {
    let cases = [
        (Settings { port: Some("http".into()), ..Settings::default() }, "PORT"),
        (Settings { port: Some("0".into()), ..Settings::default() }, "PORT"),
        (Settings { port: Some("65536".into()), ..Settings::default() }, "PORT"),
        (Settings { host: Some("no such\nhost".into()), ..Settings::default() }, "HOST"),
        (Settings { log_level: Some("loud".into()), ..Settings::default() }, "LOG_LEVEL"),
        (Settings { wan_interface: Some("a-name-of-16-byt".into()), ..Settings::default() }, "WAN_INTERFACE"),
        (Settings { state_dir: Some("state".into()), ..Settings::default() }, "STATE_DIR"),
        (Settings { flow_capacity: Some("1023".into()), ..Settings::default() }, "FLOW_CAPACITY"),
        (Settings { ports_per_host: Some("65537".into()), ..Settings::default() }, "PORTS_PER_HOST"),
        (Settings { new_flows_per_host: Some("few".into()), ..Settings::default() }, "NEW_FLOWS_PER_HOST"),
        (Settings { new_flows_per_rule: Some("-1".into()), ..Settings::default() }, "NEW_FLOWS_PER_RULE"),
        (Settings { hold_down: Some("86401".into()), ..Settings::default() }, "HOLD_DOWN"),
        (Settings { held_ports: Some("all".into()), ..Settings::default() }, "HELD_PORTS"),
        (Settings { flow_metrics_max: Some("-1".into()), ..Settings::default() }, "FLOW_METRICS_MAX"),
        (Settings { dataplane: Some("nftables".into()), ..Settings::default() }, "DATAPLANE"),
        (Settings { ovs: Some("yes".into()), ..Settings::default() }, "OVS"),
        (Settings { netfilter: Some("off".into()), ..Settings::default() }, "NETFILTER"),
        (Settings { xdp: Some("on,yes".into()), ..Settings::default() }, "XDP"),
    ];
    for (settings, variable) in cases {
        let Err(Refused::Invalid(line)) = settings.check() else { panic!("{variable} was accepted") };
        assert!(line.starts_with(&format!("{variable} is ")), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[test]
fn log_levels_are_known_in_any_case() {
    for (text, level) in
        [("debug", LogLevel::Debug), ("Warning", LogLevel::Warning), ("CRITICAL", LogLevel::Critical)]
    {
        assert_eq!(log_level(Some(text)).unwrap(), level);
    }
}

#[test]
fn a_flag_may_follow_the_subcommand() {
    let command = Command::parse(["telecluster-worker", "teardown", "--state-dir", "/tmp/state"]).unwrap();
    let Command::Teardown(config) = command else { panic!("{command:?}") };
    assert_eq!(config.state_dir, PathBuf::from("/tmp/state"));
}

#[test]
fn the_file_gives_what_flags_and_environment_leave_open() {
    let settings = Settings { port: Some("9000".into()), host: Some(String::new()), ..Settings::default() };
    let file =
        "port = 8080\nhost = \"0.0.0.0\"\nallowed_hosts = [\"a.lab\", \"b.lab\"]\nlog_format = \"json\"\n";
    let config = settings.merge(file).unwrap().check().unwrap();
    assert_eq!(config.listen, "0.0.0.0:9000".parse().unwrap());
    assert_eq!(config.allowed_hosts, ["a.lab", "b.lab"]);
    assert_eq!(config.log_format, LogFormat::Json);
}

#[test]
fn the_file_may_have_every_setting_that_there_is_a_flag_for() {
    let mut settings = Settings::default();
    let mut keys: Vec<_> = settings.by_key().iter().map(|(key, _)| (*key).to_owned()).collect();
    let command = Cli::command();
    let flags = command.get_arguments().map(|flag| flag.get_id().as_str().to_owned());
    let mut flags: Vec<_> =
        flags.filter(|flag| !matches!(flag.as_str(), "config_file" | "help" | "version")).collect();
    keys.sort();
    flags.sort();
    assert_eq!(keys, flags);
}

#[test]
fn a_file_with_a_typo_is_one_line_that_names_it() {
    for (file, word) in
        [("prot = 1", "prot"), ("port = ", "port"), ("port = 1.5", "port"), ("[port]\nx = 1", "port")]
    {
        let why = Settings::default().merge(file).unwrap_err();
        assert!(why.contains(word) && why.lines().count() == 1, "{why}");
    }
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let named = Settings { config_file: Some("/no/such/worker.toml".into()), ..Settings::default() };
    assert!(
        matches!(named.with_file(), Err(Refused::Invalid(line)) if line.contains("/no/such/worker.toml"))
    );
}

#[test]
fn an_unknown_flag_is_one_line() {
    let Err(Refused::Invalid(line)) = Command::parse(["telecluster-worker", "--prot", "1"]) else {
        panic!("it was accepted")
    };
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("--prot"), "{line}");
}

#[test]
fn allowed_hosts_are_split_at_commas() {
    let settings = Settings { allowed_hosts: Some("a.lab, b.lab,".into()), ..Settings::default() };
    assert_eq!(settings.check().unwrap().allowed_hosts, ["a.lab", "b.lab"]);
}
