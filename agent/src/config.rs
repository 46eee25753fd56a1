//! What the operator decides: flags, the environment where a flag is absent, the file where both are.
//!
//! Every value is taken as text and checked here, so that a malformed one is one line that names the
//! variable, shows what it held and says what to put there.

use std::{
    ffi::OsString,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};

use telecluster_common::tables::Limits;

use crate::{
    kernel::{dataplane::HoldDown, fastpath::Policy, xdp::Wishes},
    model::LinkName,
};

/// Everything the daemon is told from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub log_level: LogLevel,
    pub log_format: LogFormat,
    pub listen: SocketAddr,
    /// The uplink; `None`: the link of the default route.
    pub wan_interface: Option<LinkName>,
    /// `None`: `ens4`, or the only network card beside the uplink's.
    pub lan_interface: Option<LinkName>,
    /// `None`: `br-ex` and `br-int`.
    pub external_bridge: Option<LinkName>,
    pub internal_bridge: Option<LinkName>,
    pub state_dir: PathBuf,
    pub dataplane: Dataplane,
    pub ovs: Ovs,
    /// Where the database of Open vSwitch listens.
    pub ovs_socket: PathBuf,
    pub netfilter: Policy,
    /// Where the fast path may be in drivers.
    pub xdp: Wishes,
    /// How many flows have series of their own on `/metrics`.
    pub flow_metrics_max: usize,
    /// Flows that the tables are made for.
    pub flow_capacity: u32,
    /// How many of them nobody may have proven; 0: a quarter.
    pub unproven_flows: u32,
    /// How much one inside host or one rule may take.
    pub limits: Limits,
    /// How ports wait that nobody uses any more.
    pub hold_down: HoldDown,
    /// Where maps, links and programs are pinned.
    pub bpf_dir: PathBuf,
    /// Names beside the machine's own under which the worker may be called.
    pub allowed_hosts: Vec<String>,
}

/// How much is logged. `CRITICAL` logs what `ERROR` logs: nothing is worse here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Text,
    /// For programs: one object for each line.
    Json,
}

/// Which data plane does the NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dataplane {
    /// eBPF where it can be, else iptables.
    Auto,
    Ebpf,
    Iptables,
}

/// What `type: "ovs"` needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ovs {
    Auto,
    Require,
}

/// What the binary is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Run(Config),
    /// Removes everything that is the worker's.
    Teardown(Config),
    /// Says what this host can do.
    Check {
        config: Config,
        json: bool,
    },
    /// Prints the OpenAPI document.
    OpenApi,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum Refused {
    /// `--help` and `--version`: text for stdout, no failure.
    Shown(String),
    /// One line for stderr.
    Invalid(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shown(text) | Self::Invalid(text) => f.write_str(text),
        }
    }
}

/// The TeleCluster worker: bridges, links and NAT of one server, by REST.
#[derive(Debug, Parser)]
#[command(name = "telecluster-worker", version)]
struct Cli {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Action {
    /// Say what this host can do: kernel, permissions, Open vSwitch, what may be in the way
    Check {
        /// As JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Remove everything that the worker made: rules, programs, links
    Teardown,
    /// Print the OpenAPI document
    Openapi,
}

/// A flag beats the environment, which beats the file; an empty value is no value.
#[derive(Debug, Default, Args)]
struct Settings {
    /// File with the same settings, such as `port = 8000` [default: /etc/telecluster/worker.toml, if it is there]
    #[arg(long, env = "CONFIG_FILE", global = true)]
    config_file: Option<String>,
    /// DEBUG, INFO, WARNING, ERROR or CRITICAL [default: INFO]
    #[arg(long, env = "LOG_LEVEL", global = true)]
    log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, env = "LOG_FORMAT", global = true)]
    log_format: Option<String>,
    /// Port of the API [default: 8000]
    #[arg(long, env = "PORT", global = true)]
    port: Option<String>,
    /// Address to listen on; 0.0.0.0 to serve an orchestrator elsewhere [default: 127.0.0.1]
    #[arg(long, env = "HOST", global = true)]
    host: Option<String>,
    /// The uplink, of forwards that name none [default: ens3, else the link of the default route]
    #[arg(long, env = "WAN_INTERFACE", global = true)]
    wan_interface: Option<String>,
    /// The link to the other servers of the cluster [default: ens4, else the only other network card]
    #[arg(long, env = "LAN_INTERFACE", global = true)]
    lan_interface: Option<String>,
    /// The bridge to the outside [default: br-ex]
    #[arg(long, env = "EXTERNAL_BRIDGE", global = true)]
    external_bridge: Option<String>,
    /// The bridge between the VMs [default: br-int]
    #[arg(long, env = "INTERNAL_BRIDGE", global = true)]
    internal_bridge: Option<String>,
    /// Where the worker keeps its state [default: /var/lib/telecluster]
    #[arg(long, env = "STATE_DIR", global = true)]
    state_dir: Option<String>,
    /// auto, ebpf or iptables [default: auto]
    #[arg(long, env = "DATAPLANE", global = true)]
    dataplane: Option<String>,
    /// auto or require [default: auto]
    #[arg(long, env = "OVS", global = true)]
    ovs: Option<String>,
    /// Socket of Open vSwitch's database [default: /var/run/openvswitch/db.sock]
    #[arg(long, env = "OVS_SOCKET", global = true)]
    ovs_socket: Option<String>,
    /// respect: where the host has filter rules of its own, every packet passes them; bypass: packets of flows under
    /// way do not [default: respect]
    #[arg(long, env = "NETFILTER", global = true)]
    netfilter: Option<String>,
    /// auto: fast flows, and frames between ports of a VLAN, are sent on in the driver (native XDP) where nothing is lost by it;
    /// on: wherever the driver can; off; and others by name, such as auto,ens4=on [default: auto]
    #[arg(long, env = "XDP", global = true)]
    xdp: Option<String>,
    /// Flows with series of their own on /metrics, the largest first [default: 500]
    #[arg(long, env = "FLOW_METRICS_MAX", global = true)]
    flow_metrics_max: Option<String>,
    /// Flows that the tables hold, 1024 to 8388608 [default: 131072]
    #[arg(long, env = "FLOW_CAPACITY", global = true)]
    flow_capacity: Option<String>,
    /// Flows that may be in the tables while nobody has answered them or proven them otherwise, in equal parts by CPU,
    /// to 8388608; they never push out others [default: 0, a quarter of FLOW_CAPACITY]
    #[arg(long, env = "UNPROVEN_FLOWS", global = true)]
    unproven_flows: Option<String>,
    /// External ports that one inside host may have at once [default: 0, as many as there are]
    #[arg(long, env = "PORTS_PER_HOST", global = true)]
    ports_per_host: Option<String>,
    /// Seconds for which nobody else gets an external port that was given back, 0 to 86400 [default: 120]
    #[arg(long, env = "HOLD_DOWN", global = true)]
    hold_down: Option<String>,
    /// External ports of each address family that wait so at once, the first ones are free before their time
    /// [default: 0, as many as there are]
    #[arg(long, env = "HELD_PORTS", global = true)]
    held_ports: Option<String>,
    /// New flows that one inside host may make in a second [default: 0, as many as it likes]
    #[arg(long, env = "NEW_FLOWS_PER_HOST", global = true)]
    new_flows_per_host: Option<String>,
    /// New flows that one rule may make in a second [default: 0, as many as there come]
    #[arg(long, env = "NEW_FLOWS_PER_RULE", global = true)]
    new_flows_per_rule: Option<String>,
    /// Where maps and programs are pinned [default: /sys/fs/bpf/telecluster]
    #[arg(long, env = "BPF_DIR", global = true)]
    bpf_dir: Option<String>,
    /// Further names of this machine, separated by commas [default: none]
    #[arg(long, env = "ALLOWED_HOSTS", global = true)]
    allowed_hosts: Option<String>,
}

impl Command {
    /// From arguments (the first is the program's name) and the process environment.
    pub fn parse<I, T>(args: I) -> Result<Self, Refused>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let matches = Cli::command().try_get_matches_from(args).map_err(|error| clap_refusal(&error))?;
        let cli = Cli::from_arg_matches(&matches).map_err(|error| clap_refusal(&error))?;
        let settings = || cli.settings.with_file()?.check();
        match cli.action {
            None => Ok(Self::Run(settings()?)),
            Some(Action::Teardown) => Ok(Self::Teardown(settings()?)),
            Some(Action::Check { json }) => Ok(Self::Check { config: settings()?, json }),
            Some(Action::Openapi) => Ok(Self::OpenApi),
        }
    }
}

/// clap explains itself over several lines; an operator's log gets the first.
fn clap_refusal(error: &clap::Error) -> Refused {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Refused::Shown(error.to_string());
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    Refused::Invalid(format!("{}: see telecluster-worker --help", line.trim_start_matches("error: ")))
}

impl Settings {
    /// Every setting that the file may have, by its key.
    fn by_key(&mut self) -> [(&'static str, &mut Option<String>); 24] {
        [
            ("log_level", &mut self.log_level),
            ("log_format", &mut self.log_format),
            ("port", &mut self.port),
            ("host", &mut self.host),
            ("wan_interface", &mut self.wan_interface),
            ("lan_interface", &mut self.lan_interface),
            ("external_bridge", &mut self.external_bridge),
            ("internal_bridge", &mut self.internal_bridge),
            ("state_dir", &mut self.state_dir),
            ("dataplane", &mut self.dataplane),
            ("ovs", &mut self.ovs),
            ("ovs_socket", &mut self.ovs_socket),
            ("netfilter", &mut self.netfilter),
            ("xdp", &mut self.xdp),
            ("flow_metrics_max", &mut self.flow_metrics_max),
            ("flow_capacity", &mut self.flow_capacity),
            ("unproven_flows", &mut self.unproven_flows),
            ("ports_per_host", &mut self.ports_per_host),
            ("hold_down", &mut self.hold_down),
            ("held_ports", &mut self.held_ports),
            ("new_flows_per_host", &mut self.new_flows_per_host),
            ("new_flows_per_rule", &mut self.new_flows_per_rule),
            ("bpf_dir", &mut self.bpf_dir),
            ("allowed_hosts", &mut self.allowed_hosts),
        ]
    }

    /// Takes from the file what flags and environment leave open.
    fn with_file(self) -> Result<Self, Refused> {
        let path = directory("CONFIG_FILE", self.config_file.as_deref(), CONFIG_FILE)?;
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            // The usual place may be empty; a file that was named must be there.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && given(self.config_file.as_deref()).is_none() =>
            {
                return Ok(self);
            }
            Err(error) => {
                return Err(Refused::Invalid(format!("{} cannot be read: {error}", path.display())));
            }
        };
        self.merge(&text).map_err(|why| Refused::Invalid(format!("{}: {why}", path.display())))
    }

    fn merge(mut self, text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
        })?;
        for (key, value) in table {
            let known = self.by_key().into_iter().find(|(name, _)| *name == key);
            let Some((_, setting)) = known else {
                return Err(format!("there is no setting {key:?}; see telecluster-worker --help"));
            };
            let value = plain(&value).ok_or_else(|| format!("{key} is no text, number or list of texts"))?;
            if given(setting.as_deref()).is_none() {
                *setting = Some(value);
            }
        }
        Ok(self)
    }

    fn check(&self) -> Result<Config, Refused> {
        let host = match given(self.host.as_deref()) {
            None | Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(text) => text.parse().map_err(|_| {
                invalid("HOST", text, "use an address of this machine, 127.0.0.1, or 0.0.0.0 for all")
            })?,
        };
        Ok(Config {
            log_level: log_level(given(self.log_level.as_deref()))?,
            log_format: match given(self.log_format.as_deref()) {
                None | Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                Some(text) => return Err(invalid("LOG_FORMAT", text, "use text or json")),
            },
            listen: SocketAddr::new(host, number("PORT", self.port.as_deref(), 8000, 1, u16::MAX)?),
            wan_interface: link("WAN_INTERFACE", self.wan_interface.as_deref())?,
            lan_interface: link("LAN_INTERFACE", self.lan_interface.as_deref())?,
            external_bridge: link("EXTERNAL_BRIDGE", self.external_bridge.as_deref())?,
            internal_bridge: link("INTERNAL_BRIDGE", self.internal_bridge.as_deref())?,
            state_dir: directory("STATE_DIR", self.state_dir.as_deref(), "/var/lib/telecluster")?,
            dataplane: dataplane(given(self.dataplane.as_deref()))?,
            ovs: match given(self.ovs.as_deref()) {
                None | Some("auto") => Ovs::Auto,
                Some("require") => Ovs::Require,
                Some(text) => return Err(invalid("OVS", text, "use auto or require")),
            },
            ovs_socket: directory("OVS_SOCKET", self.ovs_socket.as_deref(), "/var/run/openvswitch/db.sock")?,
            netfilter: match given(self.netfilter.as_deref()) {
                None | Some("respect") => Policy::Respect,
                Some("bypass") => Policy::Bypass,
                Some(text) => return Err(invalid("NETFILTER", text, "use respect or bypass")),
            },
            xdp: match given(self.xdp.as_deref()) {
                None => Wishes::default(),
                Some(text) => Wishes::parse(text).ok_or_else(|| {
                    invalid(
                        "XDP",
                        text,
                        "use auto, on or off, and interfaces that differ by name: auto,ens4=on",
                    )
                })?,
            },
            flow_metrics_max: number(
                "FLOW_METRICS_MAX",
                self.flow_metrics_max.as_deref(),
                500,
                0,
                1_000_000,
            )?,
            flow_capacity: number("FLOW_CAPACITY", self.flow_capacity.as_deref(), 131_072, 1024, 8_388_608)?,
            unproven_flows: number("UNPROVEN_FLOWS", self.unproven_flows.as_deref(), 0, 0, 8_388_608)?,
            limits: Limits {
                ports_per_host: number("PORTS_PER_HOST", self.ports_per_host.as_deref(), 0, 0, 65_536)?,
                flows_per_host: number(
                    "NEW_FLOWS_PER_HOST",
                    self.new_flows_per_host.as_deref(),
                    0,
                    0,
                    10_000_000,
                )?,
                flows_per_rule: number(
                    "NEW_FLOWS_PER_RULE",
                    self.new_flows_per_rule.as_deref(),
                    0,
                    0,
                    10_000_000,
                )?,
            },
            hold_down: HoldDown {
                seconds: number(
                    "HOLD_DOWN",
                    self.hold_down.as_deref(),
                    HoldDown::default().seconds,
                    0,
                    HoldDown::LONGEST,
                )?,
                ports: number("HELD_PORTS", self.held_ports.as_deref(), 0, 0, 8_388_608)?,
            },
            bpf_dir: directory("BPF_DIR", self.bpf_dir.as_deref(), "/sys/fs/bpf/telecluster")?,
            allowed_hosts: given(self.allowed_hosts.as_deref())
                .map(|list| list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned))
                .map(Iterator::collect)
                .unwrap_or_default(),
        })
    }
}

/// Where the file is when nothing is said.
const CONFIG_FILE: &str = "/etc/telecluster/worker.toml";

/// A value of the file as the environment would have it.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(answer) => Some(answer.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            items.map(|items| items.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// An empty variable is an unset one: that is how a compose file or a unit clears it.
fn given(value: Option<&str>) -> Option<&str> {
    value.map(str::trim).filter(|text| !text.is_empty())
}

fn invalid(variable: &str, text: &str, advice: &str) -> Refused {
    // Debug form: a line feed in a variable must not make a second line.
    Refused::Invalid(format!("{variable} is {text:?}: {advice}"))
}

fn number<T>(variable: &str, value: Option<&str>, default: T, least: T, most: T) -> Result<T, Refused>
where
    T: std::str::FromStr + PartialOrd + fmt::Display + Copy,
{
    let Some(text) = given(value) else { return Ok(default) };
    match text.parse() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(invalid(variable, text, &format!("use a number from {least} to {most}"))),
    }
}

fn link(variable: &str, value: Option<&str>) -> Result<Option<LinkName>, Refused> {
    given(value)
        .map(|text| {
            LinkName::new(text)
                .map_err(|why| invalid(variable, text, &format!("the name {why}; `ip link` shows the names")))
        })
        .transpose()
}

fn directory(variable: &str, value: Option<&str>, default: &str) -> Result<PathBuf, Refused> {
    let path = PathBuf::from(given(value).unwrap_or(default));
    if path.is_absolute() {
        return Ok(path);
    }
    Err(invalid(variable, given(value).unwrap_or(default), "use a path that starts with /"))
}

fn log_level(value: Option<&str>) -> Result<LogLevel, Refused> {
    let Some(text) = value else { return Ok(LogLevel::Info) };
    match text.to_ascii_uppercase().as_str() {
        "DEBUG" => Ok(LogLevel::Debug),
        "INFO" => Ok(LogLevel::Info),
        "WARNING" | "WARN" => Ok(LogLevel::Warning),
        "ERROR" => Ok(LogLevel::Error),
        "CRITICAL" => Ok(LogLevel::Critical),
        _ => Err(invalid("LOG_LEVEL", text, "use DEBUG, INFO, WARNING, ERROR or CRITICAL")),
    }
}

fn dataplane(value: Option<&str>) -> Result<Dataplane, Refused> {
    match value {
        None | Some("auto") => Ok(Dataplane::Auto),
        Some("ebpf") => Ok(Dataplane::Ebpf),
        Some("iptables") => Ok(Dataplane::Iptables),
        Some(text) => Err(invalid("DATAPLANE", text, "use auto, ebpf or iptables")),
    }
}

#[cfg(test)]
mod tests;
