//! The binary: configuration, permissions, the port, then the engine, then the API.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sd_notify::NotifyState;
use telecluster_worker::{
    api::{self, ApiOptions, auth::Token, guard::Names},
    check,
    config::{Command, Config, Dataplane, Refused},
    logging, memory,
    permissions::Permissions,
    serve::{Timeouts, serve},
    start::{start, teardown},
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};

fn main() -> ExitCode {
    memory::few_arenas();
    let command = match Command::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(Refused::Shown(text)) => return print(&text),
        Err(Refused::Invalid(line)) => {
            eprintln!("telecluster-worker: {line}");
            return ExitCode::from(2);
        }
    };
    let done = match command {
        Command::OpenApi => return print(&api::document_text()),
        Command::Check { config, json } => {
            let report = check::report(&config);
            let shown = print(&if json { report.json() } else { report.table() });
            return if report.usable() { shown } else { ExitCode::FAILURE };
        }
        Command::Run(config) => with_runtime(&config, run(&config)),
        Command::Teardown(config) => with_runtime(&config, async {
            check_permissions(config.dataplane)?;
            teardown(&config).await
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever an error of a library has in it.
            eprintln!("telecluster-worker: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// Two workers: the engine is one task, and the machine's processors belong to its guests.
fn with_runtime(config: &Config, job: impl Future<Output = Result<()>>) -> Result<()> {
    logging::start(config.log_level, config.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no threads or descriptors for the runtime: see ulimit -a")?;
    let done = runtime.block_on(job);
    // A write of the store that is under way is finished.
    runtime.shutdown_timeout(Duration::from_secs(5));
    done
}

async fn run(config: &Config) -> Result<()> {
    check_permissions(config.dataplane)?;
    let mut signals = Signals::new().context("signal handlers")?;
    // The port comes first: a second worker must find out before it touches the first one's data plane.
    let listener = bind(config.listen).await?;
    let token = token(config)?;
    let engine = start(config).await?;
    let options = ApiOptions {
        port: config.listen.port(),
        token,
        names: Names::new(&hostname(), &config.allowed_hosts),
        state_dir: config.state_dir.clone(),
        flow_metrics_max: config.flow_metrics_max,
    };
    let router = api::router(engine, options);
    memory::give_back();
    tracing::info!(listen = %config.listen, version = env!("CARGO_PKG_VERSION"), "ready");
    tell_service_manager(NotifyState::Ready);
    let stop = async {
        let name = signals.next().await;
        tell_service_manager(NotifyState::Stopping);
        tracing::info!(signal = name, "stopping, the data plane stays");
    };
    serve(listener, router, Timeouts::default(), stop).await;
    Ok(())
}

/// `Type=notify` of systemd (`sd_notify(3)`); nothing where nobody asked to be told.
fn tell_service_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

/// Without the right to load programs there is iptables, unless the programs are insisted on.
fn check_permissions(dataplane: Dataplane) -> Result<()> {
    let programs = match dataplane {
        Dataplane::Ebpf => true,
        Dataplane::Auto | Dataplane::Iptables => false,
    };
    let missing = Permissions::current()
        .context("cannot tell what this process may do: mount /proc")?
        .missing(programs);
    if missing.is_empty() {
        return Ok(());
    }
    bail!("missing permissions ({}): run as root, or give the process these capabilities", missing.join(", "))
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let port = address.port();
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow::anyhow!(
                "port {port} is taken on {}: choose another with PORT=, or stop who has it",
                address.ip()
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("{} is no address of this machine: choose one with HOST=", address.ip())
        }
        _ => anyhow::anyhow!("cannot listen on {address} ({error}): choose others with HOST= and PORT="),
    })
}

/// Only who can be reached from elsewhere needs a token.
fn token(config: &Config) -> Result<Option<Token>> {
    if config.listen.ip().is_loopback() {
        return Ok(None);
    }
    let path = Token::path(&config.state_dir);
    let token = Token::load_or_create(&config.state_dir)
        .with_context(|| format!("the token in {} cannot be used", path.display()))?;
    tracing::info!(token_file = %path.display(), "callers from other machines need the token");
    Ok(Some(token))
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The signals that end the worker.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// To stdout; `| head` is no error.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
