//! Ports, frames in, frames out.
//!
//! | module | what |
//! |---|---|
//! | [`isolation`] | what keeps VLANs apart, and what tags do |
//! | [`stations`] | who is where, and who may move |
//! | [`ports`] | what ports are told to be, and what becomes of frames when that changes |

mod isolation;
mod ports;
mod stations;

use super::{
    Port,
    frames::{Ether, with_datagram},
};

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// This frame goes into that port; what comes out, by port.
    Send { port: usize, frame: Vec<u8>, out: Vec<(usize, Vec<u8>)> },
    /// A port becomes another one. A machine that cannot change its ports ends the story here.
    Put { number: usize, port: Port },
    /// Seconds pass. A machine that cannot wait ends the story here.
    Wait(u64),
}

/// What the kernel's own filter does with a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The same.
    Same,
    /// Something else, and why.
    Differs(&'static str),
}

#[derive(Debug, Clone)]
pub struct Story {
    pub name: &'static str,
    /// The first one is the bridge itself.
    pub ports: Vec<Port>,
    pub steps: Vec<Step>,
    pub kernel: Kernel,
}

fn send(port: usize, frame: &Ether, out: &[(usize, &Ether)]) -> Step {
    let out = out.iter().map(|(port, frame)| (*port, frame.bytes())).collect();
    Step::Send { port, frame: frame.bytes(), out }
}

fn story(name: &'static str, ports: Vec<Port>, steps: Vec<Step>) -> Story {
    Story { name, ports, steps, kernel: Kernel::Same }
}

impl Story {
    /// The same with datagrams in its frames.
    #[must_use]
    pub fn with_datagrams(mut self) -> Self {
        for step in &mut self.steps {
            if let Step::Send { frame, out, .. } = step {
                *frame = with_datagram(frame);
                out.iter_mut().for_each(|(_, frame)| *frame = with_datagram(frame));
            }
        }
        self
    }

    fn differs(self, why: &'static str) -> Self {
        Self { kernel: Kernel::Differs(why), ..self }
    }
}

/// Access ports in two VLANs, a trunk of both; the host in none.
fn office() -> Vec<Port> {
    vec![Port::plain(), Port::access(10), Port::access(10), Port::access(20), Port::trunk(&[10, 20])]
}

/// Every story.
pub fn all() -> Vec<Story> {
    [
        isolation::isolation(),
        isolation::tags(),
        stations::stations(),
        stations::moves(),
        ports::ports(),
        ports::changes(),
    ]
    .concat()
}
