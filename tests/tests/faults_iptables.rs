//! Every call of iptables by the worker goes wrong once, in every way that a program can: what was asked for is then there whole or
//! not at all, rules of others are as they were, and the same request works when it is made again.
//!
//! `FAULTS=all`: the n-th call of each request in each way, for n from 1 until the request no longer reaches it; else a sample,
//! `FAULTS_SEED`.

use proptest::{
    prelude::RngExt as _,
    test_runner::{RngAlgorithm, TestRng},
};
use serde_json::json;
use telecluster_tests::{
    faulty_iptables::{FaultyIptables, Variant, Wrong},
    lab::{Answer, INSIDE, INSIDE_NET, INSIDE_NET6, Lab, eventually},
};

/// Passes through all requests, unless told otherwise.
const SAMPLE: usize = 4;
/// The last call of a request that a sample may hit. Most requests make two or three for each address family.
const LATEST: usize = 6;

/// One rule of each kind; those of the firewall and `Forward` are of both address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Forward,
    Masquerade,
    Masquerade6,
    Firewall,
}

/// Made, or deleted.
const REQUESTS: [(Rule, bool); 8] = [
    (Rule::Forward, true),
    (Rule::Masquerade, true),
    (Rule::Firewall, true),
    (Rule::Masquerade6, true),
    (Rule::Masquerade, false),
    (Rule::Firewall, false),
    (Rule::Forward, false),
    (Rule::Masquerade6, false),
];

/// What is there: as the worker says, and in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    rules: [usize; 3],
    chains: Vec<Line>,
    others: Vec<Line>,
}

/// A line of `iptables-save` without counters, behind its table.
type Line = (String, String);

/// In the order of the tables' names: that of the answer is the one in which they were made.
fn lines(saved: &str) -> Vec<Line> {
    let mut table = String::new();
    let mut lines = Vec::new();
    for line in saved.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix('*') {
            Some(name) => table = name.to_owned(),
            None => lines.push((table.clone(), line.split(" [").next().unwrap_or_default().to_owned())),
        }
    }
    // Nor does it matter which of the worker's chains is jumped to first: no packet is for two of them.
    let jump = |line: &str| line.contains(" -j TELECLUSTER-") && !line.contains("-m ");
    lines.sort_by_cached_key(|(table, line)| {
        (table.clone(), if jump(line) { line.clone() } else { String::new() })
    });
    lines
}

struct Faulty {
    lab: Lab,
    iptables: FaultyIptables,
}

impl Faulty {
    fn new(variant: Variant) -> Self {
        let lab = Lab::on("iptables");
        lab.ipv6();
        let iptables = FaultyIptables::place(&lab, variant);
        for line in [
            "iptables -t nat -A POSTROUTING -s 10.99.0.0/16 -j MASQUERADE",
            "iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
            "iptables -A INPUT -s 192.0.2.66 -j DROP",
            "ip6tables -t nat -A POSTROUTING -s fd99::/64 -j MASQUERADE",
            "ip6tables -t mangle -A OUTPUT -d 2001:db8:66::/48 -j DROP",
            "ip6tables -A INPUT -s 2001:db8:66::/48 -j DROP",
        ] {
            iptables.real(&lab, line);
        }
        Self { lab, iptables }
    }

    fn ask(&self, request: (Rule, bool)) -> Answer {
        self.ask_of(request, &self.firewall())
    }

    /// With the id of the firewall rule, which is asked of the worker, and with that of iptables.
    fn ask_of(&self, (rule, create): (Rule, bool), firewall: &str) -> Answer {
        let body = match rule {
            Rule::Forward => json!({
                "external_port": 2222, "internal_ip": INSIDE, "internal_port": 22, "protocol": "all",
            }),
            Rule::Masquerade => json!({ "source_network": INSIDE_NET, "output_interface": "wan0" }),
            Rule::Masquerade6 => json!({ "source_network": INSIDE_NET6, "output_interface": "wan0" }),
            Rule::Firewall => json!({ "chain": "INPUT", "action": "DROP", "protocol": "tcp", "port": 25 }),
        };
        let path = match (rule, create) {
            (Rule::Forward, _) => "/nat/forward",
            (Rule::Masquerade | Rule::Masquerade6, _) => "/nat/masquerade",
            (Rule::Firewall, true) => "/nat/firewall",
            (Rule::Firewall, false) => {
                return self.lab.call("DELETE", &format!("/nat/firewall/{firewall}"), None);
            }
        };
        self.lab.call(if create { "POST" } else { "DELETE" }, path, Some(&body))
    }

    fn firewall(&self) -> String {
        let status = self.lab.get("/nat/status");
        let id = status["firewall_rules"].get(0).and_then(|rule| rule["id"].as_str());
        id.unwrap_or("none").to_owned()
    }

    fn seen(&self) -> Seen {
        let status = self.lab.get("/nat/status");
        let rules = ["port_forwards", "masquerade_rules", "firewall_rules"]
            .map(|list| status[list].as_array().expect("a list").len());
        // Chosen at random; a rule that nobody knows keeps it and is no rule that was expected.
        let id = status["firewall_rules"].get(0).and_then(|rule| rule["id"].as_str()).unwrap_or("none");
        let saved = self.iptables.saved(&self.lab).replace(id, "ID");
        let (chains, others): (Vec<_>, Vec<_>) =
            lines(&saved).into_iter().partition(|(_, line)| line.contains("TELECLUSTER"));
        // Tables that a first rule makes hold nothing of anybody's.
        let others = others.into_iter().filter(|(_, line)| line.starts_with("-A")).collect();
        Seen { rules, chains, others }
    }

    /// The same without the rules of others.
    fn ours(&self) -> ([usize; 3], Vec<Line>) {
        let Seen { rules, chains, others: _ } = self.seen();
        (rules, chains)
    }

    /// What is there before each request and after the last, when nothing goes wrong.
    fn expected(&self) -> Vec<Seen> {
        let mut seen = vec![self.seen()];
        for request in REQUESTS {
            self.ask(request).ok();
            seen.push(self.seen());
        }
        assert_eq!(seen.first(), seen.last(), "something is left when all is deleted");
        seen
    }

    /// Each request with a call that goes wrong; how many did, and how many requests were refused for it.
    fn pass(&self, expected: &[Seen], mut fault: impl FnMut() -> (usize, Wrong)) -> (usize, usize) {
        let (mut faults, mut refused) = (0, 0);
        for (request, around) in REQUESTS.into_iter().zip(expected.windows(2)) {
            let ((n, wrong), firewall) = (fault(), self.firewall());
            self.iptables.arm(n, wrong);
            let answer = self.ask_of(request, &firewall);
            let happened = self.iptables.disarm();
            faults += usize::from(happened.is_some());
            let what = format!("{request:?}, call {n} ({happened:?}) {wrong:?}: {answer:?}");
            let now = self.seen();
            if answer.status == 200 {
                assert_eq!(now, around[1], "{what}");
                continue;
            }
            refused += 1;
            assert!(happened.is_some(), "nothing has gone wrong: {what}");
            assert_eq!(answer.body["code"], "KERNEL_REFUSED", "{what}");
            let message = answer.body["message"].as_str().unwrap_or_default();
            assert!(message.contains("tables-"), "it does not say which program: {what}");
            assert_eq!(now, around[0], "{what}");
            self.ask(request).ok();
            assert_eq!(self.seen(), around[1], "again, after {what}");
        }
        (faults, refused)
    }
}

fn random() -> TestRng {
    let seed = std::env::var("FAULTS_SEED").map_or(0, |seed| seed.parse().expect("FAULTS_SEED is a number"));
    TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32])
}

fn every_call_goes_wrong(variant: Variant) {
    let faulty = Faulty::new(variant);
    let worker = faulty.lab.start();
    let expected = faulty.expected();
    let (mut faults, mut refused) = (0, 0);
    let mut sum = |(more, others)| {
        (faults, refused) = (faults + more, refused + others);
        more
    };
    if std::env::var_os("FAULTS").is_some() {
        for wrong in Wrong::QUICK {
            let mut n = 1;
            while sum(faulty.pass(&expected, || (n, wrong))) > 0 {
                n += 1;
            }
            println!("{variant:?} {wrong:?}: up to {} calls of a request", n - 1);
        }
    } else {
        let mut random = random();
        for _ in 0..SAMPLE {
            sum(faulty.pass(&expected, || {
                (random.random_range(1..=LATEST), Wrong::QUICK[random.random_range(0..Wrong::QUICK.len())])
            }));
        }
    }
    println!("{variant:?}: {faults} calls went wrong, {refused} requests were refused");
    assert!(refused > 0, "nothing was refused");
    assert_eq!(faulty.lab.get("/health")["status"], "healthy");
    worker.stop();
}

#[test]
fn a_call_of_iptables_nft_that_goes_wrong_leaves_a_request_done_or_undone() {
    every_call_goes_wrong(Variant::Nft);
}

#[test]
fn a_call_of_iptables_legacy_that_goes_wrong_leaves_a_request_done_or_undone() {
    every_call_goes_wrong(Variant::Legacy);
}

/// A worker that waits for ever holds up everybody: it owns the state.
#[test]
fn a_call_of_iptables_that_never_ends_is_ended() {
    let faulty = Faulty::new(Variant::Nft);
    let _worker = faulty.lab.start();
    let expected = faulty.expected();
    // What a request asks first, and what it does then.
    for (n, request) in [(1, REQUESTS[0]), (2, REQUESTS[1])] {
        let before = faulty.seen();
        // Else a look of the worker may meet it, which nobody waits for.
        faulty.iptables.rest();
        faulty.iptables.arm(n, Wrong::Hangs);
        let answer = faulty.ask_of(request, "none");
        let happened = faulty.iptables.disarm();
        assert_eq!(answer.status, 409, "{happened:?}: {answer:?}");
        let message = answer.body["message"].as_str().unwrap_or_default();
        assert!(message.contains("was killed") && message.contains("xtables.lock"), "{answer:?}");
        assert_eq!(faulty.seen(), before, "{answer:?}");
        faulty.ask(request).ok();
    }
    assert_eq!(faulty.seen(), expected[2]);
}

#[test]
fn a_start_during_which_iptables_goes_wrong_says_so_and_the_next_one_has_everything() {
    let faulty = Faulty::new(Variant::Nft);
    let worker = faulty.lab.start();
    for request in &REQUESTS[..4] {
        faulty.ask(*request).ok();
    }
    let everything = faulty.ours();
    worker.murder();
    let mut ended = 0;
    let mut random = random();
    for n in 1..=8 {
        let ways = if std::env::var_os("FAULTS").is_some() {
            Wrong::QUICK.to_vec()
        } else {
            vec![Wrong::QUICK[random.random_range(0..Wrong::QUICK.len())]]
        };
        for (wrong, flushed) in ways.into_iter().flat_map(|wrong| [(wrong, false), (wrong, true)]) {
            if flushed {
                // As after a reboot, but for the rules of others.
                faulty.lab.sh("nft flush ruleset");
            }
            faulty.iptables.arm(n, wrong);
            let started = faulty.lab.try_start(&mut faulty.lab.worker_command());
            let happened = faulty.iptables.disarm();
            let what = format!("call {n} ({happened:?}) {wrong:?}, flushed: {flushed}");
            let worker = match started {
                Ok(worker) => worker,
                Err(said) => {
                    ended += 1;
                    assert!(happened.is_some(), "nothing has gone wrong, {what}: {said}");
                    assert!(said.contains("tables-"), "it does not say which program, {what}: {said}");
                    faulty.lab.start()
                }
            };
            eventually(&format!("not all is there, {what}"), || faulty.ours() == everything);
            worker.murder();
        }
    }
    assert!(ended > 0, "every start has come about");
}
