//! The worker is killed at random moments of a mixed workload. What it has acknowledged is there afterwards, what it
//! has not is there whole or not at all, and nothing is left that nobody knows.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use proptest::{
    prelude::RngExt as _,
    test_runner::{RngAlgorithm, TestRng},
};
use telecluster_tests::{
    lab::Lab,
    objects::{Object, links, links_of, prepare, present},
};

/// How often, if `KILLS` does not say otherwise.
const KILLS: u32 = 30;

/// As far as the client can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    There,
    Absent,
    /// It was asked for, or asked away, and the worker died before it answered.
    Either,
}

/// How long it takes here to make and delete an object of each kind: the latest moment after a start at which the worker is killed.
/// An emulated machine may need more for one change than another one for all of them.
fn latest(lab: &Lab) -> Duration {
    let began = Instant::now();
    for object in Object::KINDS {
        let (path, body) = object.create();
        lab.post(path, &body).ok();
        let (method, path, body) = object.delete();
        lab.call(method, path, Some(&body)).ok();
    }
    began.elapsed()
}

#[test]
fn what_was_acknowledged_is_there_whenever_the_worker_is_killed() {
    let kills = std::env::var("KILLS").map_or(KILLS, |kills| kills.parse().expect("KILLS is a number"));
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let lab = Lab::new();
    let mut worker = lab.start();
    prepare(&lab);
    let latest = latest(&lab);
    let mut known: BTreeMap<Object, State> = BTreeMap::new();
    let mut acknowledged = 0;
    for _ in 0..kills {
        let dying = AtomicBool::new(false);
        let moment = latest.mul_f64(random.random_range(0.0..1.0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !dying.load(Ordering::Relaxed) {
                    let object = Object::any(&mut random);
                    let there = known.get(&object) == Some(&State::There);
                    let (method, path, body) = if there {
                        object.delete()
                    } else {
                        let (path, body) = object.create();
                        ("POST", path, body)
                    };
                    match lab.try_call(method, path, Some(&body)) {
                        Ok(answer) => {
                            answer.ok();
                            acknowledged += 1;
                            known.insert(object, if there { State::Absent } else { State::There });
                        }
                        Err(_) => {
                            known.insert(object, State::Either);
                        }
                    }
                }
            });
            thread::sleep(moment);
            dying.store(true, Ordering::Relaxed);
            worker.murder();
        });
        worker = lab.start();
        let there = present(&lab);
        for (object, state) in &mut known {
            match state {
                State::There => assert!(there.contains(object), "{object:?} was acknowledged and is lost"),
                State::Absent => assert!(!there.contains(object), "{object:?} was deleted and is back"),
                State::Either => {
                    *state = if there.contains(object) { State::There } else { State::Absent };
                }
            }
        }
        let unknown = there.iter().find(|object| known.get(object) != Some(&State::There));
        assert_eq!(unknown, None, "nobody asked for it");
        assert_eq!(links(&lab), links_of(&there), "links that nobody knows");
        let rooms = lab.router.sh("ip -o link show type veth");
        let half = |line: &&str| line.contains(" tcw-in-") && !line.contains("telecluster waiting room");
        assert_eq!(rooms.lines().find(half), None, "a waiting room that stays half made");
    }
    println!("{kills} kills within {latest:?}, {acknowledged} acknowledged changes, none lost");
    assert!(acknowledged > 0, "no change was acknowledged between {kills} kills");
}
