//! A network namespace that a test has made: commands and sockets in it.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{prctl::set_pdeathsig, signal::Signal},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::PATIENCE;

/// A network namespace without a name.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Netns {
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root: a network namespace");
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").expect("open the namespace"))
        };
        let netns = Self(thread::spawn(make).join().expect("a thread"));
        netns.ip("link set lo up");
        netns
    }

    /// The same namespace, for a thread that outlives this value.
    pub fn again(&self) -> Self {
        Self(self.0.try_clone().expect("duplicate a descriptor"))
    }

    /// Runs on a thread inside the namespace. Sockets that it makes stay in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside, and not outlive this thread.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let netns = self.0.try_clone().expect("duplicate a descriptor");
        // SAFETY: two system calls, nothing that a fork of a threaded process must not do.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        command
    }

    /// Runs a command line (split at blanks) inside; its standard output.
    pub fn sh(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a program"));
        output(command.args(words), line)
    }

    pub fn ip(&self, arguments: &str) {
        self.sh(&format!("ip {arguments}"));
    }

    /// Whether this kernel makes VLAN links (8021q), asked without the worker. Not over loopback: no kernel makes those.
    pub fn makes_vlan_links(&self, over: &str) -> bool {
        let mut command = self.command("ip");
        command.args(["link", "add", "link", over, "name", "probe", "type", "vlan", "id", "9"]);
        let made = command.stderr(Stdio::null()).status().expect("run ip").success();
        if made {
            self.ip("link del probe");
        }
        made
    }

    /// A path that `ip link set netns` takes.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A veth pair from here to another namespace.
    pub fn veth(&self, name: &str, other: &Self, other_name: &str) {
        self.ip(&format!("link add {name} type veth peer name {other_name} netns {}", other.path()));
    }

    pub fn udp(&self, address: impl Into<SocketAddr>) -> UdpSocket {
        let address = address.into();
        let socket =
            self.run(|| UdpSocket::bind(address)).unwrap_or_else(|error| panic!("bind {address}: {error}"));
        socket.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        socket
    }

    /// A program that another test starts at this moment has a copy of every socket until it is executed: one that listened here a
    /// moment ago may still do so.
    pub fn listen(&self, address: impl Into<SocketAddr>) -> TcpListener {
        let address = address.into();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.run(|| TcpListener::bind(address)) {
                Ok(listener) => return listener,
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(error) => panic!("listen on {address}: {error}"),
            }
        }
    }

    /// A socket that sends whole IP packets, of this address' family.
    pub fn raw(&self, family: impl Into<IpAddr>) -> Socket {
        let domain = if family.into().is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        // IPPROTO_RAW: the header is in what is sent
        self.run(|| Socket::new(domain, Type::RAW, Some(Protocol::from(255)))).expect("a raw socket")
    }

    pub fn connect(&self, address: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let address = address.into();
        let stream = self.run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// A counter of `/proc/net/snmp`: `("Udp", "InCsumErrors")`.
    pub fn snmp(&self, protocol: &str, counter: &str) -> u64 {
        let text = self.sh("cat /proc/thread-self/net/snmp");
        let mut lines = text.lines().filter(|line| line.starts_with(&format!("{protocol}:")));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let place =
            names.split_whitespace().position(|name| name == counter).expect("a counter of that name");
        values.split_whitespace().nth(place).and_then(|value| value.parse().ok()).expect("a number")
    }
}

pub(crate) fn output(command: &mut Command, label: &str) -> String {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{label}: {error}"));
    assert!(status.success(), "{label}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}
