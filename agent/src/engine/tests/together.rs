//! Many callers at once.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_at_once_end_as_if_they_had_come_one_after_the_other() {
    let (engine, fake) = lab([]).await;
    let calls: Vec<_> = (0..64u8)
        .map(|n| {
            let engine = engine.clone();
            // Four targets compete for each of four ports.
            let wanted = Change::CreateForward(request(8000 + u16::from(n % 4), n / 16));
            tokio::spawn(async move { engine.change(wanted).await })
        })
        .collect();
    let mut made = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(outcome) => made += usize::from(outcome.changed),
            Err(error) => assert_eq!(error.code, Code::ForwardPortInUse),
        }
    }
    assert_eq!((made, fake.dataplane.nat().rules.len(), fake.store.load().unwrap().len()), (4, 4, 4));
}

/// Conflicting requests about the same few links.
fn quarrel(client: usize) -> Change {
    let bridges = ["br-a", "br-b"];
    let (one, other) = (bridges[client % 2], bridges[(client + 1) % 2]);
    match client % 8 {
        0 => bridge_with(one, client.is_multiple_of(3)),
        1 => Change::DeleteBridge { name: one.into(), force: client.is_multiple_of(3) },
        2 => tap("tap0", Some(one)),
        3 => attach("tap0", other),
        4 => Change::DetachTap { tap: "tap0".into() },
        5 => veth("v1", "v2", Some(one), Some(bridges[client / 8 % 2]), None),
        6 => Change::MoveVethToBridge { veth: "v2".into(), bridge: bridges[client / 8 % 2].into() },
        _ if client.is_multiple_of(3) => Change::DeleteTun { name: "tap0".into() },
        _ => Change::DeleteVeth { name: "v1".into() },
    }
}

/// What a change would come to on that machine: its writes, or why not.
async fn planned(fake: &Fake, change: &Change) -> Result<Entries, Code> {
    let observed = fake.kernel.observe().await.unwrap();
    let state = State::read(fake.store.load().unwrap()).unwrap();
    let (nat, options) = (crate::plan::Installed::default(), Options::default());
    let world = crate::plan::World {
        observed: &observed,
        state: &state,
        nat: &nat,
        options: &options,
        fresh_id: "",
        reachable: &[],
        listeners: &[],
    };
    let plan = crate::kinds::plan(change, world).map_err(|error| error.code)?;
    let entry = |write: crate::state::Write| match write {
        crate::state::Write::Put(record) => (record.key(), Some(record.to_json().unwrap())),
        crate::state::Write::Forget(record) => (record.key(), None),
    };
    Ok(alike(plan.writes.into_iter().map(entry).collect()))
}

type Entries = Vec<(String, Option<serde_json::Value>)>;

/// Without what every bridge has of its own: one that is made again has another hardware address.
fn alike(mut entries: Entries) -> Entries {
    for record in entries.iter_mut().filter_map(|(_, record)| record.as_mut()?.as_object_mut()) {
        record.remove("mac");
    }
    entries
}

fn stored(fake: &Fake) -> Entries {
    alike(fake.store.load().unwrap().into_iter().map(|(key, record)| (key, Some(record))).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicting_requests_about_links_end_as_some_order_explains() {
    let (engine, fake) = lab([bridge("br-a")]).await;
    let first = fake.store.commits().len();
    let calls: Vec<_> = (0..64)
        .map(|client| {
            let engine = engine.clone();
            tokio::spawn(async move { (quarrel(client), engine.change(quarrel(client)).await) })
        })
        .collect();
    let (mut done, mut idle) = (Vec::new(), Vec::new());
    for call in calls {
        match call.await.unwrap() {
            (change, Ok(outcome)) if outcome.changed => done.push(change),
            (change, Ok(_)) => idle.push((change, None)),
            (change, Err(error)) => idle.push((change, Some(error.code))),
        }
    }
    // The same again, one after the other, in the order of the commits.
    let (serial, again) = lab([bridge("br-a")]).await;
    let mut commits = fake.store.commits().split_off(first).into_iter().map(alike);
    loop {
        // Who was refused or had nothing to do must have come at a moment at which that is right.
        let mut unexplained = Vec::new();
        for (change, code) in idle {
            let explained = match (planned(&again, &change).await, code) {
                (Ok(writes), None) => writes.is_empty(),
                (Err(why), Some(code)) => why == code,
                (Ok(_), Some(_)) | (Err(_), None) => false,
            };
            if !explained {
                unexplained.push((change, code));
            }
        }
        idle = unexplained;
        let Some(commit) = commits.next() else { break };
        let mut whose = None;
        for (position, change) in done.iter().enumerate() {
            if planned(&again, change).await.is_ok_and(|writes| writes == commit) {
                whose = Some(position);
                break;
            }
        }
        let whose = whose.unwrap_or_else(|| panic!("nobody asked for {commit:?}"));
        assert!(serial.change(done.remove(whose)).await.unwrap().changed);
    }
    assert!(done.is_empty() && idle.is_empty(), "no order explains {done:?} {idle:?}");
    assert_eq!(
        by_name(&fake.kernel.observe().await.unwrap()),
        by_name(&again.kernel.observe().await.unwrap())
    );
    assert_eq!(stored(&fake), stored(&again));
}
