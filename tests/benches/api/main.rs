//! How fast the API is with much to look after: a worker of its own in a lab that vanishes, many clients, a table on
//! standard output. Figures, not judgements; `cargo xtask bench api` builds the worker and calls it. Parts of it by
//! their names: `cargo xtask bench api -- links`.

mod client;
mod table;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::time::TimeValLike as _,
    time::{clock_getcpuclockid, clock_gettime},
};
use serde_json::{Value, json};
use telecluster_tests::lab::{Lab, Worker};
use telecluster_worker::store::{RedbStore, Store as _};

use self::{
    client::{Answered, Client},
    table::{Row, Times},
};

/// On a disk, whatever `/tmp` is: without an fsync that costs something the figures mean nothing.
const DISK: &str = "/var/tmp";
const CLIENTS: usize = 16;
/// A bridge has at most 1,023 ports (linux: `BR_MAX_PORTS`).
const PAIRS_PER_BRIDGE: usize = 50;

/// What lies between two changes of one client.
const BETWEEN: Duration = Duration::from_millis(20);

type Part = fn(&Scale) -> Vec<Row>;

/// How much of everything.
struct Scale {
    pairs: usize,
    namespaces: usize,
    forwards: usize,
    reads: usize,
    changes: usize,
    held: Duration,
}

const WHOLE: Scale = Scale {
    pairs: 980,
    namespaces: 200,
    forwards: 10_000,
    reads: 200,
    changes: 500,
    held: Duration::from_secs(60),
};
const QUICK: Scale = Scale {
    pairs: 98,
    namespaces: 20,
    forwards: 1000,
    reads: 50,
    changes: 100,
    held: Duration::from_secs(5),
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |word: &str| arguments.iter().any(|argument| argument == word);
    let scale = if given("--quick") { QUICK } else { WHOLE };
    let parts: [(&str, Part); 6] = [
        ("alone", one_by_one),
        ("vlans", with_vlans),
        ("links", with_many_links),
        ("namespaces", with_many_namespaces),
        ("rules", with_many_rules),
        ("clients", many_clients),
    ];
    // Those that are named, or all of them.
    let some = parts.iter().any(|(name, _)| given(name));
    let mut rows = vec![commits()];
    for (_, part) in parts.iter().filter(|(name, _)| !some || given(name)) {
        rows.extend(part(&scale));
    }
    print!("{}", table::markdown(&rows));
}

/// What the disk itself takes, to compare the others with.
fn commits() -> Row {
    let directory = tempfile::tempdir_in(DISK).expect("a directory");
    let store = RedbStore::open(directory.path()).expect("a store");
    let times = (0..200).map(|number| {
        let entry = (format!("rule/fwd-{number}"), Some(json!({ "slot": number })));
        timed(|| store.commit(&[vec![entry]]).expect("a commit")).1
    });
    Row::times("a commit of the store, fsync included, nothing else", &times.collect(), None)
}

/// What one operator sees on a machine that has next to nothing to do.
fn one_by_one(scale: &Scale) -> Vec<Row> {
    const IDLE: Duration = Duration::from_secs(20);
    let lab = lab();
    let worker = lab.start_command(&mut command(&lab));
    say("one rule after the other");
    let mut rows = lab.router.run(|| {
        let client = Client::new();
        // The first rule of an uplink puts the programs there, which is another story.
        client.forward(0);
        client.masquerade("10.98.0.0/24");
        let mut rows = Vec::new();
        let mut measure = |what: &str, make: &dyn Fn() -> Answered, delete: &str| {
            let (mut made, mut deleted) = (Times::default(), Times::default());
            for _ in 0..scale.changes {
                made.push(make().took);
                thread::sleep(Duration::from_millis(10));
                deleted.push(client.delete(delete).took);
                thread::sleep(Duration::from_millis(10));
            }
            rows.push(Row::times(&format!("{what} made, few others there"), &made, limit(5)));
            rows.push(Row::times(&format!("{what} deleted, few others there"), &deleted, limit(5)));
        };
        let ports = "external_port=10001&internal_ip=10.99.0.2&internal_port=22";
        measure("a forward", &|| client.forward(1), &format!("/nat/forward?{ports}&protocol=tcp"));
        let network = "source_network=10.99.0.0/24&output_interface=wan0";
        let masquerade = || client.masquerade("10.99.0.0/24");
        measure("a masquerade rule", &masquerade, &format!("/nat/masquerade?{network}"));
        rows
    });
    let before = processor_time(&worker);
    thread::sleep(IDLE);
    let used = processor_time(&worker).saturating_sub(before);
    let seconds = IDLE.as_secs();
    rows.push(Row::once(&format!("processor time of {seconds} s of idleness, two rules"), used, None));
    rows.push(Row::memory("resident memory after that", resident(&worker), Some(30)));
    worker.stop();
    rows
}

/// VLANs of ports. Where programs have to be attached first, the kernel waits for all processors, for each of them.
fn with_vlans(scale: &Scale) -> Vec<Row> {
    let lab = lab();
    let worker = lab.start_command(&mut command(&lab));
    say("VLANs of ports");
    let rows = lab.router.run(|| {
        let client = Client::new();
        client.post("/bridge/create", &json!({ "name": "br-v" }));
        for pair in 0..4 {
            client.post("/veth/create", &json!({ "name1": format!("p{pair}"), "name2": format!("e{pair}") }));
        }
        let port = |pair: usize| json!({ "bridge_name": "br-v", "port_name": format!("p{pair}") });
        let with = |mut body: Value, fields: Value| {
            let (Some(body_fields), Value::Object(fields)) = (body.as_object_mut(), fields) else {
                unreachable!("both are objects")
            };
            body_fields.extend(fields);
            body
        };
        let native = |pair| with(port(pair), json!({ "vlan_id": 10, "tagged": false }));
        let tagged = |pair| with(port(pair), json!({ "vlan_id": 20, "tagged": true }));
        let of = |pair, vlan: u16| with(port(pair), json!({ "vlan_id": vlan }));
        for pair in 0..3 {
            client.post("/bridge/add-port", &port(pair));
        }
        let [into, out_of] = ["/vlan/add-to-bridge", "/vlan/remove-from-bridge"];
        let mut rows = Vec::new();
        let mut measure = |what: &str, make: (&str, Value), delete: (&str, Value)| {
            let changed = (make.0, &make.1);
            let [made, _] = made_and_deleted(&client, scale, changed, (delete.0, &delete.1));
            rows.push(Row::times(what, &made, limit(20)));
        };
        measure("the first VLAN of a bridge of three ports", (into, native(0)), (out_of, of(0, 10)));
        client.post(into, &native(0));
        let first = "a port's first VLAN, where another port of its bridge has one";
        measure(first, (into, native(1)), (out_of, of(1, 10)));
        client.post(into, &native(1));
        measure("one more VLAN of a port", (into, tagged(1)), (out_of, of(1, 20)));
        measure(
            "a port put with its VLAN into a bridge that has VLANs",
            ("/bridge/add-port", with(port(3), json!({ "vlan": 10 }))),
            ("/bridge/remove-port", port(3)),
        );
        rows
    });
    worker.stop();
    rows
}

fn with_many_links(scale: &Scale) -> Vec<Row> {
    let lab = lab();
    let worker = lab.start_command(&mut command(&lab));
    let bridges = scale.pairs.div_ceil(PAIRS_PER_BRIDGE);
    let links = 2 * scale.pairs + bridges;
    say(&format!("{links} managed links"));
    let with = |what: &str| format!("{what}, {links} managed links");
    let mut rows = lab.router.run(|| {
        let client = Client::new();
        for bridge in 0..bridges {
            client.post("/bridge/create", &json!({ "name": format!("br{bridge}") }));
        }
        let (_, took) = timed(|| {
            for pair in 0..scale.pairs {
                let bridge = format!("br{}", pair / PAIRS_PER_BRIDGE);
                client.post(
                    "/veth/create",
                    &json!({ "name1": format!("a{pair}"), "name2": format!("b{pair}"), "bridge1": bridge }),
                );
            }
        });
        let interfaces = client.get("/network/interfaces").body;
        let managed = |list: &Value| {
            list.as_array().map_or(0, |list| list.iter().filter(|one| one["managed"] == true).count())
        };
        assert_eq!(managed(&interfaces), links, "every link is there and ours");
        let settled = timed(|| settle(&client)).1;
        let read = |path: &str| (0..scale.reads).map(|_| client.get(path).took).collect::<Times>();
        let [made, deleted] = pair_changes(&client, scale);
        let [bridge_made, bridge_deleted] = bridge_changes(&client, scale);
        vec![
            Row::once(&format!("{} pairs made, one after the other", scale.pairs), took, None),
            Row::once("and until the kernel has brought all of them up, looked at every 3 s", settled, None),
            Row::times(&with("`GET /network/topology`"), &read("/network/topology"), limit(300)),
            Row::times(&with("`GET /network/interfaces`"), &read("/network/interfaces"), limit(100)),
            Row::times(&with("`GET /bridge/list`"), &read("/bridge/list"), None),
            Row::times(&with("`GET /veth/list`"), &read("/veth/list"), None),
            Row::times(&with("a pair made, one end in a bridge"), &made, limit(20)),
            Row::times(&with("a pair deleted"), &deleted, limit(20)),
            Row::times(&with("a bridge made"), &bridge_made, limit(20)),
            Row::times(&with("a bridge deleted"), &bridge_deleted, limit(20)),
            Row::times(&with("a forward made and deleted, each"), &rules(&client, scale), limit(20)),
            Row::times(&with("a port put in and taken out, each"), &port_changes(&client, scale), limit(20)),
        ]
    });
    worker.stop();
    let [pair, bridge] = by_hand(&lab, scale);
    rows.push(Row::times("for comparison: `ip link del` of a pair, no worker", &pair, None));
    rows.push(Row::times("for comparison: `ip link del` of a bridge, no worker", &bridge, None));
    let (worker, took) = timed(|| ready(&lab));
    rows.push(Row::once(&format!("start, {links} managed links in place"), took, limit(1000)));
    worker.stop();
    rows
}

/// Links in other namespaces: a look at the machine must not grow with what nobody changes.
fn with_many_namespaces(scale: &Scale) -> Vec<Row> {
    let lab = lab();
    let worker = lab.start_command(&mut command(&lab));
    let Scale { namespaces, .. } = *scale;
    say(&format!("{namespaces} network namespaces"));
    let with = |what: &str| format!("{what}, {namespaces} network namespaces");
    for number in 0..namespaces {
        lab.sh(&format!("ip netns add lab{number}"));
    }
    let rows = lab.router.run(|| {
        let client = Client::new();
        client.post("/bridge/create", &json!({ "name": "br0" }));
        for number in 0..namespaces {
            let (near, namespace) = (format!("n{number}"), format!("lab{number}"));
            let far = json!({ "name1": near, "bridge1": "br0", "name2": "eth0", "namespace2": namespace });
            client.post("/veth/create", &far);
        }
        settle(&client);
        let [made, deleted] = pair_changes(&client, scale);
        let read = |path: &str| (0..scale.reads).map(|_| client.get(path).took).collect::<Times>();
        vec![
            Row::times(&with("`GET /veth/list`"), &read("/veth/list"), None),
            Row::times(&with("a pair made, one end in a bridge"), &made, limit(20)),
            Row::times(&with("a pair deleted"), &deleted, limit(20)),
            Row::times(&with("a forward made and deleted, each"), &rules(&client, scale), limit(20)),
        ]
    });
    worker.stop();
    rows
}

/// Waits until the kernel has told of every link's carrier, a hundred of them at a time (linux: `linkwatch_run_queue`): it is
/// busy with that meanwhile, and nobody else can change a link.
fn settle(client: &Client) {
    let mut before = Value::Null;
    loop {
        thread::sleep(Duration::from_secs(3));
        let now = client.get("/network/interfaces").body;
        if now == before {
            return;
        }
        before = now;
    }
}

fn with_many_rules(scale: &Scale) -> Vec<Row> {
    let lab = lab();
    let worker = lab.start_command(&mut command(&lab));
    let Scale { forwards, .. } = *scale;
    say(&format!("{forwards} forwards"));
    let mut rows = lab.router.run(|| {
        thread::scope(|scope| {
            for number in 0..CLIENTS {
                scope.spawn(move || {
                    let client = Client::new();
                    (number..forwards).step_by(CLIENTS).for_each(|index| drop(client.forward(index)));
                });
            }
        });
        let client = Client::new();
        let listed = client.get("/nat/status").body;
        assert_eq!(listed["port_forwards"].as_array().map(Vec::len), Some(forwards));
        let read = |path: &str| (0..scale.reads).map(|_| client.get(path).took).collect::<Times>();
        let with = |what: &str| format!("{what}, {forwards} forwards");
        vec![
            Row::times(&with("`GET /nat/status`"), &read("/nat/status"), None),
            Row::times(&with("`GET /metrics`"), &read("/metrics"), None),
            Row::times(&with("`GET /network/topology`"), &read("/network/topology"), None),
            Row::times(&with("a forward made and deleted, each"), &rules(&client, scale), limit(20)),
        ]
    });
    let full = resident(&worker);
    rows.push(Row::memory(
        &format!("resident memory, {forwards} forwards, after all of that"),
        full,
        Some(64),
    ));
    worker.stop();
    let (worker, took) = timed(|| ready(&lab));
    rows.push(Row::once(&format!("start, {forwards} forwards in place"), took, limit(1000)));
    worker.murder();
    let (worker, took) = timed(|| ready(&lab));
    rows.push(Row::once(&format!("start after `kill -9`, {forwards} forwards in place"), took, limit(1000)));
    rows.push(Row::memory("resident memory after that start", resident(&worker), Some(64)));
    worker.stop();
    rows
}

/// Forwards and masquerade rules, made and deleted by everybody as fast as each is answered.
fn many_clients(scale: &Scale) -> Vec<Row> {
    let lab = lab();
    let worker = lab.start_command(&mut command(&lab));
    say(&format!("{CLIENTS} clients for {} s", scale.held.as_secs()));
    let over = AtomicBool::new(false);
    let (times, took) = lab.router.run(|| {
        timed(|| {
            thread::scope(|scope| {
                let clients: Vec<_> = (0..CLIENTS)
                    .map(|number| {
                        let over = &over;
                        scope.spawn(move || busy(number, over))
                    })
                    .collect();
                thread::sleep(scale.held);
                over.store(true, Ordering::Relaxed);
                clients.into_iter().flat_map(|client| client.join().expect("no error")).collect::<Times>()
            })
        })
    });
    let memory = resident(&worker);
    worker.stop();
    let what = format!("{CLIENTS} clients for {} s, each change", scale.held.as_secs());
    vec![
        Row::times(&what, &times, None),
        Row::rate("changes a second, none refused", times.len(), took, 500),
        Row::memory("resident memory after that", memory, Some(64)),
    ]
}

fn busy(number: usize, over: &AtomicBool) -> Times {
    let client = Client::new();
    let mut times = Times::default();
    for round in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        if round % 8 == 7 {
            let net = format!("10.{number}.{}.0/24", round / 8 % 250);
            times.push(client.masquerade(&net).took);
            let path = format!("/nat/masquerade?source_network={net}&output_interface=wan0");
            times.push(client.delete(&path).took);
        } else {
            let made = client.forward(1000 * (number + 1) + round % 1000);
            times.push(made.took);
            times.push(client.delete(&format!("/nat/forward/{}", made.rule_id())).took);
        }
    }
    times
}

fn rules(client: &Client, scale: &Scale) -> Times {
    let mut times = Times::default();
    for number in 0..scale.changes {
        let made = client.forward(20_000 + number);
        times.push(made.took);
        times.push(client.delete(&format!("/nat/forward/{}", made.rule_id())).took);
    }
    times
}

/// How long it took to make a bridge, and how long to delete it.
fn bridge_changes(client: &Client, scale: &Scale) -> [Times; 2] {
    let body = json!({ "name": "br-bench" });
    made_and_deleted(client, scale, ("/bridge/create", &body), ("/bridge/delete", &body))
}

fn pair_changes(client: &Client, scale: &Scale) -> [Times; 2] {
    let made = json!({ "name1": "one", "name2": "other", "bridge1": "br0" });
    made_and_deleted(client, scale, ("/veth/create", &made), ("/veth/delete", &json!({ "name": "one" })))
}

fn made_and_deleted(
    client: &Client,
    scale: &Scale,
    make: (&str, &Value),
    delete: (&str, &Value),
) -> [Times; 2] {
    let mut times = [Times::default(), Times::default()];
    for _ in 0..scale.changes {
        for (times, (path, body)) in times.iter_mut().zip([make, delete]) {
            // As somebody would who reads the answer first: what the kernel does behind a change is over by then.
            thread::sleep(BETWEEN);
            times.push(client.post(path, body).took);
        }
    }
    times
}

/// How long the kernel itself takes to delete a pair, and a bridge, among the links that are there.
fn by_hand(lab: &Lab, scale: &Scale) -> [Times; 2] {
    ["link add one type veth peer name other", "link add one type bridge"].map(|add| {
        let delete = || {
            lab.router.ip(add);
            thread::sleep(BETWEEN);
            timed(|| lab.router.ip("link del one")).1
        };
        (0..scale.reads).map(|_| delete()).collect()
    })
}

fn port_changes(client: &Client, scale: &Scale) -> Times {
    client.post("/veth/create", &json!({ "name1": "in", "name2": "out" }));
    let body = json!({ "bridge_name": "br0", "port_name": "in" });
    let paths = ["/bridge/add-port", "/bridge/remove-port"];
    (0..scale.changes).flat_map(|_| paths.map(|path| client.post(path, &body).took)).collect()
}

fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.state = tempfile::tempdir_in(DISK).expect("a state directory");
    lab
}

/// As an operator starts it, but for what it says.
fn command(lab: &Lab) -> std::process::Command {
    let mut command = lab.worker_command();
    command.env_remove("FLOW_CAPACITY").env("LOG_LEVEL", "WARNING");
    command
}

/// A worker that has answered about its rules: it listens before it has read what is stored.
fn ready(lab: &Lab) -> Worker {
    let worker = lab.start_command(&mut command(lab));
    lab.router.run(|| drop(Client::new().get("/nat/status")));
    worker
}

/// Resident memory in KiB.
fn resident(worker: &Worker) -> u64 {
    let path = Path::new("/proc").join(worker.pid().to_string()).join("status");
    let status = std::fs::read_to_string(path).expect("the worker's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What all of its threads have used.
fn processor_time(worker: &Worker) -> Duration {
    let used = clock_getcpuclockid(worker.pid()).and_then(clock_gettime).expect("the worker's clock");
    Duration::from_nanos(used.num_nanoseconds().unsigned_abs())
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let done = work();
    (done, began.elapsed())
}

fn limit(milliseconds: u64) -> Option<Duration> {
    Some(Duration::from_millis(milliseconds))
}

fn say(what: &str) {
    eprintln!("    {what}");
}
