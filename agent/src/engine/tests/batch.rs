//! Changes that share one commit: each is whole by itself, and all of them are stored or none.

use futures_util::future::join_all;

use super::*;

/// Asks for all of these before any is served; what each came to.
async fn at_once(engine: &Engine, ports: &[u16]) -> Vec<Result<Outcome>> {
    let forward = |port: &u16| engine.change(Change::CreateForward(request(*port, 10)));
    join_all(ports.iter().map(forward)).await
}

/// The ports that are forwarded, in order.
fn forwarded(fake: &Fake) -> Vec<u16> {
    let port = |rule: &NatRule| match rule {
        NatRule::Forward { external_port, .. } => Some(*external_port),
        NatRule::Masquerade { .. } => None,
    };
    let mut ports: Vec<u16> = fake.dataplane.nat().rules.values().filter_map(port).collect();
    ports.sort_unstable();
    ports
}

const PORTS: [u16; 4] = [1000, 1001, 1002, 1003];

#[tokio::test]
async fn a_change_that_fails_takes_nothing_of_its_batch_along() {
    for n in 0.. {
        let (engine, fake) = lab([masquerade(true)]).await;
        let commits = fake.store.commits().len();
        fake.faults.fail_after(n);
        let outcomes = at_once(&engine, &PORTS).await;
        let failed = !fake.faults.disarm();
        let made: Vec<u16> = PORTS
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| outcome.is_ok())
            .map(|(port, _)| *port)
            .collect();
        assert_eq!(forwarded(&fake), made, "step {n}: {:#?}", fake.faults.take_steps());
        assert_eq!(fake.store.commits().len() - commits, made.len(), "step {n}");
        if !failed {
            assert_eq!(made, PORTS, "nothing failed any more");
            break;
        }
        assert_eq!(made.len(), PORTS.len() - 1, "step {n}: one failed");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_written_undoes_the_whole_batch() {
    let (engine, fake) = lab([masquerade(true)]).await;
    let nat = fake.dataplane.nat();
    fake.store.set_broken(true);
    for outcome in at_once(&engine, &PORTS).await {
        assert_eq!(outcome.unwrap_err().code, Code::StoreUnwritable);
    }
    assert_eq!(fake.dataplane.nat(), nat);
    fake.store.set_broken(false);
    for outcome in at_once(&engine, &PORTS).await {
        outcome.unwrap();
    }
    assert_eq!(forwarded(&fake), PORTS);
}
