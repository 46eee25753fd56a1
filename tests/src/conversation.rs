//! One flow of datagrams between the inside host and the outside one, each of which is answered.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use serde_json::Value;

use crate::lab::{INSIDE, INSIDE6, Lab, OUTSIDE, OUTSIDE6, PATIENCE, WAN, WAN6, Worker, eventually};

/// Inside 40000 to a port outside.
#[derive(Debug)]
pub struct Conversation {
    pub client: UdpSocket,
    pub server: UdpSocket,
    seen_as: SocketAddr,
    port: u16,
}

impl Conversation {
    pub fn new(lab: &Lab) -> Self {
        Self::between(lab, (INSIDE, 40000).into(), (OUTSIDE, 5300).into(), (WAN, 40000).into())
    }

    pub fn new6(lab: &Lab) -> Self {
        Self::between(lab, (INSIDE6, 40000).into(), (OUTSIDE6, 5300).into(), (WAN6, 40000).into())
    }

    /// From another port of the inside, to the same one outside.
    pub fn to(lab: &Lab, from: u16, to: u16) -> Self {
        Self::between(lab, (INSIDE, from).into(), (OUTSIDE, to).into(), (WAN, from).into())
    }

    fn between(lab: &Lab, from: SocketAddr, to: SocketAddr, seen_as: SocketAddr) -> Self {
        let (client, server) = (lab.inside.udp(from), lab.outside.udp(to));
        client.connect(to).expect("connect");
        Self { client, server, seen_as, port: seen_as.port() }
    }

    /// There and back again.
    pub fn turn(&self) {
        let mut buffer = [0; 2048];
        self.client.send(b"there").expect("send");
        let (len, from) = self.server.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(from, self.seen_as);
        self.server.send_to(&buffer[..len], from).expect("answer");
        assert_eq!(self.client.recv(&mut buffer).expect("the answer"), len);
    }

    /// Whether a datagram arrives, soon.
    pub fn gets_through(&self) -> bool {
        self.server.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
        let arrived = self.client.send(b"there").is_ok() && self.server.recv(&mut [0; 2048]).is_ok();
        self.server.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        arrived
    }

    /// As the worker lists it.
    pub fn flow(&self, lab: &Lab) -> Value {
        lab.get(&format!("/nat/flows?external_port={}", self.port))["flows"][0].clone()
    }

    /// Turns until it is on the fast path.
    pub fn becomes_fast(&self, lab: &Lab) {
        eventually("the flow does not become fast", || {
            self.turn();
            self.flow(lab)["path"] == "fast"
        });
    }
}

/// A worker that masquerades, and a conversation that is not fast yet.
pub fn masqueraded(lab: Lab) -> (Lab, Worker, Conversation) {
    let worker = lab.start();
    lab.masquerade();
    let conversation = Conversation::new(&lab);
    (lab, worker, conversation)
}
