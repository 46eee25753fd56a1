//! Accepts connections: so many at a time, and none may take for ever to say what it wants.
//!
//! `axum::serve` has no timer for request heads: whoever opens connections and sends nothing would hold our
//! descriptors until there are none left.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};
use tower::ServiceExt;

/// Connections of this host at a time; further ones wait in the kernel's queue.
const LOCAL: usize = 512;
/// Connections from elsewhere at a time, and of those from one place; further ones are closed. Whoever holds them all
/// keeps others from elsewhere out, and not those of this host.
const ELSEWHERE: usize = 512;
const PLACE: usize = 128;

/// How long a connection may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until the head of a request is there; also how long a connection may idle between requests.
    pub head: Duration,
    /// For requests that are under way when the worker stops.
    pub grace: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { head: Duration::from_secs(30), grace: Duration::from_secs(10) }
    }
}

/// Serves until `stop` is ready, then lets open requests finish. The data plane is left as it is: it works
/// without us.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    timeouts: Timeouts,
    stop: impl Future<Output = ()>,
) {
    let open = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(LOCAL));
    let guests = Guests::default();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: waiting is all that helps, spinning makes it worse.
                tracing::warn!(%error, "a connection was not accepted");
                time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let seat = if peer.ip().to_canonical().is_loopback() {
            tokio::select! {
                permit = Arc::clone(&permits).acquire_owned() => permit.map(Seat::Local).ok(),
                () = &mut stop => break,
            }
        } else {
            guests.admit(peer.ip()).map(Seat::Elsewhere)
        };
        let Some(seat) = seat else {
            tracing::debug!(%peer, "there are too many connections from elsewhere; this one is closed");
            continue;
        };
        // An answer is small and leaves at once.
        let _ = stream.set_nodelay(true);
        let service = router.clone().map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo::<SocketAddr>(peer));
            request
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(timeouts.head)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = open.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "a connection ended early");
            }
            drop(seat);
        });
    }
    drop(listener);
    if time::timeout(timeouts.grace, open.shutdown()).await.is_err() {
        tracing::warn!(seconds = timeouts.grace.as_secs(), "requests are still open, leaving them");
    }
}

/// What a connection holds while it is open.
#[expect(dead_code, reason = "they are held to be dropped")]
enum Seat {
    Local(OwnedSemaphorePermit),
    Elsewhere(Guest),
}

/// Connections from elsewhere, by where they come from.
#[derive(Clone, Default)]
struct Guests(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them.
struct Guest {
    guests: Guests,
    place: IpAddr,
}

impl Guests {
    fn admit(&self, from: IpAddr) -> Option<Guest> {
        let place = place(from);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let here = counts.get(&place).copied().unwrap_or(0);
        if all >= ELSEWHERE || here >= PLACE {
            return None;
        }
        counts.insert(place, here + 1);
        Some(Guest { guests: self.clone(), place })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.guests.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.place);
            }
        }
    }
}

/// Who has one IPv6 address has a whole network of them.
fn place(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::oneshot,
        task::JoinHandle,
    };

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts { head: Duration::from_millis(100), grace: Duration::from_secs(5) };

    async fn started() -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = || async {
            time::sleep(Duration::from_millis(300)).await;
            "slow"
        };
        let who = |peer: ConnectInfo<SocketAddr>| async move { peer.0.ip().to_string() };
        let router = Router::new().route("/who", routing::get(who)).route("/slow", routing::get(slow));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(listener, router, TIMEOUTS, async {
            let _ = stopped.await;
        }));
        (address, stop, server)
    }

    /// Sends, and reads until the other side closes.
    async fn exchange(address: SocketAddr, text: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn handlers_know_who_calls() {
        let (address, _stop, _server) = started().await;
        let answer = exchange(address, "GET /who HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.ends_with("\r\n\r\n127.0.0.1"), "{answer}");
    }

    #[test]
    fn one_place_does_not_have_all_connections_and_gives_them_back() {
        let guests = Guests::default();
        let (crowd, other) = ("192.0.2.1".parse().unwrap(), "::ffff:192.0.2.2".parse().unwrap());
        let mut held: Vec<_> = (0..PLACE).map(|_| guests.admit(crowd).unwrap()).collect();
        assert!(guests.admit(crowd).is_none());
        assert!(guests.admit(other).is_some());
        held.pop();
        assert!(guests.admit(crowd).is_some());
        drop(held);
        assert!(guests.0.lock().unwrap().is_empty());
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_place() {
        let guests = Guests::default();
        let address = |host: u16| Ipv6Addr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, host]).into();
        let held: Vec<_> = (0..u16::MAX).map_while(|host| guests.admit(address(host))).collect();
        assert_eq!(held.len(), PLACE);
    }

    #[test]
    fn there_is_an_end_for_all_places_together() {
        let guests = Guests::default();
        let held: Vec<_> = (0..u32::MAX)
            .map_while(|host| guests.admit(std::net::Ipv4Addr::from(host + (1 << 24)).into()))
            .collect();
        assert_eq!(held.len(), ELSEWHERE);
    }

    #[tokio::test]
    async fn a_caller_that_does_not_finish_its_request_is_let_go() {
        let (address, _stop, _server) = started().await;
        let waited =
            time::timeout(Duration::from_secs(5), exchange(address, "GET /who HTTP/1.1\r\nHo")).await;
        assert!(!waited.unwrap().contains("200 OK"));
    }

    #[tokio::test]
    async fn a_request_under_way_is_finished_and_a_new_one_refused() {
        let (address, stop, server) = started().await;
        let under_way = tokio::spawn(exchange(address, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"));
        time::sleep(Duration::from_millis(100)).await;
        stop.send(()).unwrap();
        server.await.unwrap();
        assert!(under_way.await.unwrap().ends_with("slow"));
        assert!(TcpStream::connect(address).await.is_err());
    }
}
