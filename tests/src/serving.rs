//! A TCP server that tells its callers who they are.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

/// Accepts, says who it is that has connected, and repeats what it hears.
pub fn serving(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let Ok(peer) = stream.peer_addr() else { return };
                let mut line = [0; 4096];
                let _ = stream.write_all(format!("{:<64}", peer.ip()).as_bytes());
                while let Ok(len) = stream.read(&mut line)
                    && len > 0
                {
                    let _ = stream.write_all(&line[..len]);
                }
            });
        }
    });
}
