//! Port forwards, masquerade, flows, and what is measured of them.

use super::*;
use crate::{
    kernel::{dataplane::Transport, listeners::Listener},
    metrics::exposition::Format,
};

fn ssh() -> Value {
    json!({
        "external_port": 2222,
        "internal_ip": "192.168.100.10",
        "internal_port": 22,
        "protocol": "tcp",
        "description": "SSH access to VM1",
    })
}

fn with(mut body: Value, field: &str, value: Value) -> Value {
    body[field] = value;
    body
}

async fn rules(lab: &Lab) -> (Vec<Value>, Vec<Value>) {
    let status = lab.get("/nat/status").await.json;
    let list = |name: &str| status[name].as_array().unwrap().clone();
    assert!(list("firewall_rules").is_empty());
    (list("port_forwards"), list("masquerade_rules"))
}

#[tokio::test]
async fn the_readmes_forward_has_an_id_that_finds_and_deletes_it() {
    let lab = Lab::new().await;
    let made = lab.post("/nat/forward", ssh()).await;
    let id = made.done(true)["rule_id"].as_str().unwrap().to_owned();
    assert_eq!(made.json["data"]["id"], id.as_str());

    let (forwards, _) = rules(&lab).await;
    assert_eq!(forwards.len(), 1);
    assert_eq!(forwards[0]["id"], id.as_str());
    assert_eq!(forwards[0]["action"], "DNAT");
    assert_eq!((&forwards[0]["dest_ip"], &forwards[0]["dest_port"]), (&json!("192.168.100.10"), &json!(22)));
    assert_eq!(forwards[0]["interface"], "ens3");

    let shown = lab.get(&format!("/network/nat/forward/{id}")).await;
    assert_eq!(shown.done(false)["description"], "SSH access to VM1");

    // Part of an id is no id.
    lab.delete(&format!("/nat/forward/{}", &id[..id.len() - 1]), Value::Null)
        .await
        .refused(404, "RULE_NOT_FOUND");
    lab.delete(&format!("/nat/forward/{id}"), Value::Null).await.done(true);
    lab.get(&format!("/nat/forward/{id}")).await.refused(404, "RULE_NOT_FOUND");
    assert!(rules(&lab).await.0.is_empty());
}

#[tokio::test]
async fn a_port_leads_to_one_place() {
    let lab = Lab::new().await;
    let first = lab.post("/nat/forward", ssh()).await;
    let again = lab.post("/nat/forward", ssh()).await;
    assert_eq!(again.done(false)["rule_id"], first.json["data"]["rule_id"]);
    let other = with(ssh(), "internal_ip", json!("192.168.100.11"));
    let refused = lab.post("/nat/forward", other).await;
    refused.refused(409, "FORWARD_PORT_IN_USE");
    assert_eq!(rules(&lab).await.0.len(), 1);
}

#[tokio::test]
async fn a_port_that_the_host_listens_on_is_not_taken_from_it() {
    let lab = Lab::new().await;
    lab.post("/nat/forward", ssh()).await.done(true);
    for local in ["0.0.0.0:2222", "192.0.2.10:2223", "127.0.0.1:2224", "198.51.100.1:2225"] {
        lab.fake.kernel.listen(Listener { transport: Transport::Tcp, local: local.parse().unwrap() });
    }
    // It was there first.
    lab.post("/nat/forward", ssh()).await.done(false);

    let on = |port: u16| with(ssh(), "external_port", json!(port));
    lab.post("/nat/forward", on(2223)).await.refused(409, "FORWARD_PORT_IN_USE");
    lab.post("/nat/forward", with(on(2223), "protocol", json!("all")))
        .await
        .refused(409, "FORWARD_PORT_IN_USE");
    assert_eq!(rules(&lab).await.0.len(), 1);
    let mut around = on(2223);
    around["external_port_end"] = json!(2230);
    let refused = lab.post("/nat/forward", around).await;
    assert!(refused.json["message"].as_str().is_some_and(|text| text.contains("192.0.2.10:2223")));
    refused.refused(409, "FORWARD_PORT_IN_USE");

    let one = with(on(2223), "external_ip", json!("192.0.2.10"));
    lab.post("/nat/forward", one).await.refused(409, "FORWARD_PORT_IN_USE");
    let other = with(on(2223), "external_ip", json!("192.0.2.99"));
    lab.post("/nat/forward", other).await.done(true);

    // Another transport, loopback, another interface's address, another family.
    lab.post("/nat/forward", with(on(2223), "protocol", json!("udp"))).await.done(true);
    lab.post("/nat/forward", on(2224)).await.done(true);
    lab.post("/nat/forward", on(2225)).await.done(true);
    lab.post("/nat/forward", with(ssh(), "internal_ip", json!("fd00:100::10"))).await.done(true);
}

#[tokio::test]
async fn a_forward_that_sleeps_takes_nothing_until_it_is_woken() {
    let lab = Lab::new().await;
    lab.fake.kernel.listen(Listener { transport: Transport::Tcp, local: "[::]:2222".parse().unwrap() });
    lab.post("/nat/forward", with(ssh(), "enabled", json!(false))).await.done(true);
    lab.post("/nat/forward", ssh()).await.refused(409, "FORWARD_PORT_IN_USE");
    assert_eq!(rules(&lab).await.0[0]["enabled"], false);
}

#[tokio::test]
async fn a_forward_is_deleted_by_exactly_its_ports() {
    let lab = Lab::new().await;
    lab.post("/nat/forward", ssh()).await.done(true);
    lab.post("/nat/forward", with(ssh(), "protocol", json!("udp"))).await.done(true);

    let which = "external_port=2222&internal_ip=192.168.100.10";
    lab.delete(&format!("/nat/forward?{which}"), Value::Null).await.refused(422, "INVALID_FIELD");
    lab.delete(&format!("/nat/forward?{which}&internal_port=23"), Value::Null)
        .await
        .refused(404, "RULE_NOT_FOUND");
    lab.delete(&format!("/nat/forward?{which}&internal_port=22&protocol=all"), Value::Null)
        .await
        .refused(404, "RULE_NOT_FOUND");
    lab.delete(&format!("/nat/forward?{which}&internal_port=22&protocol=udp"), Value::Null).await.done(true);
    let (left, _) = rules(&lab).await;
    assert_eq!((left.len(), &left[0]["protocol"]), (1, &json!("tcp")));

    let body = json!({ "external_port": 2222, "internal_ip": "192.168.100.10", "internal_port": 22 });
    lab.delete("/nat/forward", body).await.done(true);
    assert!(rules(&lab).await.0.is_empty());
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_refused_with_the_reason() {
    let lab = Lab::new().await;
    for (field, value, status, code) in [
        ("external_port", json!(0), 422, "INVALID_FIELD"),
        ("external_port", json!(8000), 409, "FORWARD_PORT_RESERVED"),
        ("internal_ip", json!("0.0.0.0"), 422, "INVALID_FIELD"),
        ("internal_ip", json!("vm1"), 422, "INVALID_FIELD"),
        ("internal_ip", json!("fe80::1"), 422, "INVALID_FIELD"),
        ("protocol", json!("icmp"), 422, "INVALID_FIELD"),
        ("interface", json!("ens9"), 404, "LINK_NOT_FOUND"),
        ("source_cidrs", json!(["10.0.0.0/33"]), 422, "INVALID_FIELD"),
        ("source_cidrs", json!(["2001:db8::/32"]), 422, "INVALID_FIELD"),
        ("source_cidrs", json!(["10.0.0.0/8", "2001:db8::/32"]), 422, "INVALID_FIELD"),
        ("source_cidrs", json!(vec!["10.0.0.0/8"; 257]), 422, "INVALID_FIELD"),
        ("external_port_end", json!(2221), 422, "INVALID_FIELD"),
        ("external_port_end", json!(65536), 422, "INVALID_FIELD"),
        ("external_port_end", json!(8000), 409, "FORWARD_PORT_RESERVED"),
        ("internal_port", json!(0), 422, "INVALID_FIELD"),
        ("description", json!("a\nb"), 422, "INVALID_FIELD"),
    ] {
        lab.post("/nat/forward", with(ssh(), field, value)).await.refused(status, code);
    }
    assert!(rules(&lab).await.0.is_empty());
}

#[tokio::test]
async fn a_range_that_does_not_fit_inside_is_refused() {
    let lab = Lab::new().await;
    let range = |internal_port: u16| {
        json!({ "external_port": 3000, "external_port_end": 3010, "internal_ip": "192.168.100.10",
                "internal_port": internal_port, "protocol": "udp" })
    };
    lab.post("/nat/forward", range(65526)).await.refused(422, "INVALID_FIELD");
    lab.post("/nat/forward", range(65525)).await.done(true);
}

#[tokio::test]
async fn a_range_and_its_sources_are_shown_as_they_are() {
    let lab = Lab::new().await;
    let body = json!({
        "external_port": 3000, "external_port_end": 3010, "internal_ip": "192.168.100.10", "internal_port": 5000,
        "protocol": "all", "source_cidrs": "198.51.100.7/24,198.51.100.0/25,10.0.0.0/8",
    });
    lab.post("/nat/forward", body.clone()).await.done(true);
    lab.post("/nat/forward", body).await.done(false);
    let (forwards, _) = rules(&lab).await;
    let rule = &forwards[0];
    assert_eq!((&rule["source_port"], &rule["external_port_end"]), (&json!(3000), &json!(3010)));
    assert_eq!(
        rule["source_cidrs"],
        json!(["10.0.0.0/8", "198.51.100.0/24"]),
        "without what says nothing more"
    );
    assert_eq!(rule["source_ip"], "10.0.0.0/8,198.51.100.0/24");
    // A range of one port is that port, and what is open to everybody says so.
    let single = json!({ "external_port": 4000, "external_port_end": 4000, "internal_ip": "192.168.100.10",
                         "internal_port": 80, "protocol": "tcp", "source_cidrs": [] });
    lab.post("/nat/forward", single.clone()).await.done(true);
    let mut alone = single;
    alone["external_port_end"] = json!(null);
    lab.post("/nat/forward", alone).await.done(false);
    let (forwards, _) = rules(&lab).await;
    let rule = forwards.iter().find(|rule| rule["source_port"] == 4000).expect("the rule");
    assert_eq!((rule.get("external_port_end"), rule.get("source_cidrs")), (None, None));
    assert_eq!(rule["source_ip"], "0.0.0.0/0");
}

#[tokio::test]
async fn masquerade_is_made_found_and_deleted_by_what_it_does() {
    let lab = Lab::new().await;
    let body = json!({ "source_network": "192.168.100.7/24", "output_interface": "ens3" });
    let made = lab.post("/nat/masquerade", body.clone()).await;
    assert_eq!(made.done(true)["source_ip"], "192.168.100.0/24");
    lab.post("/nat/masquerade", body).await.done(false);
    let (_, masquerade) = rules(&lab).await;
    assert_eq!((masquerade.len(), &masquerade[0]["action"]), (1, &json!("MASQUERADE")));

    // A masquerade rule is no forward.
    let id = made.json["data"]["rule_id"].as_str().unwrap();
    lab.get(&format!("/nat/forward/{id}")).await.refused(404, "RULE_NOT_FOUND");
    lab.delete(&format!("/nat/forward/{id}"), Value::Null).await.refused(404, "RULE_NOT_FOUND");

    let which = "source_network=192.168.100.0/24&output_interface=ens3";
    lab.delete(&format!("/nat/masquerade?{which}"), Value::Null).await.done(true);
    lab.delete(&format!("/nat/masquerade?{which}"), Value::Null).await.refused(404, "RULE_NOT_FOUND");
}

#[tokio::test]
async fn destinations_that_a_masquerade_leaves_alone_are_shown_as_they_are() {
    let lab = Lab::new().await;
    let body = |excluded: Value| {
        json!({ "source_network": "192.168.100.0/24", "output_interface": "ens3",
                "exclude_destinations": excluded })
    };
    for excluded in [
        json!(["10.0.0.0/33"]),
        json!(["2001:db8::/32"]),
        json!(["0.0.0.0/0"]),
        json!({}),
        json!((0..257).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect::<Vec<_>>()),
    ] {
        lab.post("/nat/masquerade", body(excluded)).await.refused(422, "INVALID_FIELD");
    }
    assert!(rules(&lab).await.1.is_empty());
    let given = body(json!("10.1.2.3/8, 10.4.0.0/16,172.16.0.0/12"));
    lab.post("/nat/masquerade", given.clone()).await.done(true);
    lab.post("/nat/masquerade", given).await.done(false);
    let (_, masquerade) = rules(&lab).await;
    assert_eq!(masquerade[0]["exclude_destinations"], json!(["10.0.0.0/8", "172.16.0.0/12"]));
    // Without them it is the same rule, changed.
    lab.post("/nat/masquerade", body(json!([]))).await.done(true);
    let (_, masquerade) = rules(&lab).await;
    assert_eq!((masquerade.len(), masquerade[0].get("exclude_destinations")), (1, None));
}

#[tokio::test]
async fn the_addresses_of_a_pool_are_such_as_answers_can_come_back_to() {
    let lab = Lab::new().await;
    let body = |pool: Value| json!({ "source_network": "192.168.100.0/24", "output_interface": "ens3", "external_ips": pool });
    for pool in [
        json!(["192.0.2.300"]),
        json!(["2001:db8::5"]),
        json!(["127.0.0.1"]),
        json!(["224.0.0.1"]),
        json!(["192.168.100.7"]),
        json!((0..65).map(|n| format!("198.51.100.{n}")).collect::<Vec<_>>()),
    ] {
        lab.post("/nat/masquerade", body(pool)).await.refused(422, "INVALID_FIELD");
    }
    // Neighbours would ask for it in vain.
    lab.post("/nat/masquerade", body(json!(["192.0.2.77"]))).await.refused(409, "POOL_ADDRESS_ABSENT");
    assert!(rules(&lab).await.1.is_empty());

    let pool = json!(["198.51.100.9", "192.0.2.10", "198.51.100.9"]);
    let made = lab.post("/nat/masquerade", body(pool)).await;
    assert_eq!(made.json["status"], "warning", "one of them has to be routed here");
    let sorted = json!(["192.0.2.10", "198.51.100.9"]);
    assert_eq!(rules(&lab).await.1[0]["external_ips"], sorted);
    lab.post("/nat/masquerade", body(sorted)).await.done(false);
    // Another network may share it there, and not on another uplink.
    let mut other = body(json!("198.51.100.9"));
    other["source_network"] = json!("10.0.0.0/8");
    lab.post("/nat/masquerade", other.clone()).await;
    other["output_interface"] = json!("ens4");
    lab.post("/nat/masquerade", other).await.refused(409, "POOL_ADDRESS_IN_USE");
    // Without them it is the same rule, changed.
    lab.post("/nat/masquerade", body(json!([]))).await.done(true);
    assert!(rules(&lab).await.1.iter().any(|rule| rule.get("external_ips").is_none()));
}

#[tokio::test]
async fn how_long_flows_may_be_idle_is_said_for_a_rule_and_shown_where_it_is_not_as_usual() {
    let lab = Lab::new().await;
    let masquerade = |timeouts: Value| json!({ "source_network": "192.168.100.0/24", "output_interface": "ens3", "timeouts": timeouts });
    for bad in [
        json!({ "udp": 4 }),
        json!({ "udp": 604_801 }),
        json!({ "udp": "soon" }),
        json!({ "sctp": 30 }),
        json!([30]),
        json!(30),
        json!("{"),
    ] {
        lab.post("/nat/masquerade", masquerade(bad)).await.refused(422, "INVALID_FIELD");
    }
    assert!(rules(&lab).await.1.is_empty());
    lab.post("/nat/masquerade", masquerade(json!({ "udp": 30, "icmp": "10" }))).await.done(true);
    let whole = json!({ "tcp_established": 7440, "tcp_transitory": 240, "udp": 30, "icmp": 10 });
    assert_eq!(rules(&lab).await.1[0]["timeouts"], whole);
    lab.post("/nat/masquerade", masquerade(whole.clone())).await.done(false);
    lab.post("/nat/masquerade", masquerade(Value::String(whole.to_string()))).await.done(false);
    // How long it may take to open alone; as long as to close is nothing of its own.
    lab.post("/nat/masquerade", masquerade(json!({ "tcp_transitory": 60, "tcp_opening": 20 })))
        .await
        .done(true);
    let apart =
        json!({ "tcp_established": 7440, "tcp_transitory": 60, "tcp_opening": 20, "udp": 300, "icmp": 60 });
    assert_eq!(rules(&lab).await.1[0]["timeouts"], apart);
    lab.post("/nat/masquerade", masquerade(apart)).await.done(false);
    lab.post("/nat/masquerade", masquerade(json!({ "tcp_opening": 240 }))).await.done(true);
    assert_eq!(rules(&lab).await.1[0].get("timeouts"), None);
    lab.post("/nat/masquerade", masquerade(json!({ "tcp_opening": 4 }))).await.refused(422, "INVALID_FIELD");
    // Without them it is the same rule, changed.
    lab.post("/nat/masquerade", masquerade(json!({ "udp": 30 }))).await.done(true);
    lab.post("/nat/masquerade", masquerade(json!({}))).await.done(true);
    let (_, masquerades) = rules(&lab).await;
    assert_eq!((masquerades.len(), masquerades[0].get("timeouts")), (1, None));

    let forward = json!({ "external_port": 53, "internal_ip": "192.168.100.10", "internal_port": 53,
                          "protocol": "udp", "timeouts": { "udp": 20 } });
    lab.post("/nat/forward", forward.clone()).await.done(true);
    lab.post("/nat/forward", forward).await.done(false);
    assert_eq!(rules(&lab).await.0[0]["timeouts"]["udp"], 20);
}

#[tokio::test]
async fn how_many_flows_a_rule_makes_in_a_second_is_shown_where_it_says_so() {
    let lab = Lab::new().await;
    let rule = |pace: Value| json!({ "source_network": "192.168.100.0/24", "output_interface": "ens3", "new_flows_per_second": pace });
    for bad in [json!(-1), json!(1_000_001), json!("many"), json!(1.5)] {
        lab.post("/nat/masquerade", rule(bad)).await.refused(422, "INVALID_FIELD");
    }
    lab.post("/nat/masquerade", rule(json!("50"))).await.done(true);
    lab.post("/nat/masquerade", rule(json!(50))).await.done(false);
    assert_eq!(rules(&lab).await.1[0]["new_flows_per_second"], 50);
    lab.post("/nat/masquerade", rule(json!(0))).await.done(true);
    assert_eq!(rules(&lab).await.1[0].get("new_flows_per_second"), None);
    let forward = json!({ "external_port": 53, "internal_ip": "192.168.100.10", "internal_port": 53,
                          "protocol": "udp", "new_flows_per_second": 20 });
    lab.post("/nat/forward", forward).await.done(true);
    assert_eq!(rules(&lab).await.0[0]["new_flows_per_second"], 20);
}

#[tokio::test]
async fn masquerade_is_deleted_by_id_in_path_query_and_body() {
    let lab = Lab::new().await;
    for (path, body) in
        [("/ID", Value::Null), ("?id=ID", Value::Null), ("?rule_id=ID", Value::Null), ("", json!("ID"))]
    {
        let spec = json!({ "source_network": "10.0.0.0/24", "output_interface": "ens3", "enabled": "false" });
        let made = lab.post("/nat/masquerade", spec).await;
        assert_eq!(made.done(true)["enabled"], false);
        let id = made.json["data"]["rule_id"].as_str().unwrap();
        let body = if body.is_null() { body } else { json!({ "rule_id": id }) };
        lab.delete(&format!("/nat/masquerade{}", path.replace("ID", id)), body).await.done(true);
    }
}

#[tokio::test]
async fn flows_are_a_page_and_a_typo_in_a_filter_is_seen() {
    let lab = Lab::new().await;
    let page = lab.get("/nat/flows?protocol=tcp&limit=5&inside=10.0.0.2").await;
    assert_eq!(
        page.json,
        json!({ "total": 0, "flows": [], "warnings": ["unknown field 'inside' was ignored"] })
    );
    lab.get("/nat/flows?limit=0").await.refused(422, "INVALID_FIELD");
    lab.get("/nat/flows?external_port=ssh").await.refused(422, "INVALID_FIELD");
}

#[tokio::test]
async fn health_and_metrics_show_what_is_there() {
    let lab = Lab::new().await;
    let made = lab.post("/nat/forward", ssh()).await;
    let id = made.done(true)["rule_id"].as_str().unwrap().to_owned();

    let health = lab.get("/health").await;
    assert_eq!(health.json["dataplane"]["backend"], "fake");
    assert_eq!(health.json["dataplane"]["rules"], 1);
    assert!(!health.json["environment"]["kernel"].as_str().unwrap().is_empty());
    // Depending on who runs the tests.
    let healthy = health.json["status"] == "healthy";
    assert_eq!(health.status, if healthy { 200 } else { 503 }, "{}", health.text);

    let asked =
        request("GET", "/metrics").header(header::ACCEPT, "application/openmetrics-text;version=1.0.0");
    let asked = send(&lab.router, asked.body(Body::empty()).unwrap()).await;
    assert_eq!(asked.headers[header::CONTENT_TYPE], Format::OpenMetrics.content_type());
    assert!(asked.text.ends_with("# EOF\n"));
    let metrics = lab.get("/metrics").await;
    assert_eq!(metrics.headers[header::CONTENT_TYPE], Format::Text.content_type());
    let line =
        format!("telecluster_rule_packets_total{{rule_id=\"{id}\",action=\"DNAT\",direction=\"in\"}} 0");
    assert!(metrics.text.contains(&line), "{}", metrics.text);
    assert!(
        metrics.text.contains(
            r#"telecluster_http_requests_total{method="POST",route="/nat/forward",status="200"} 1"#
        )
    );
}

#[tokio::test]
async fn a_firewall_rule_is_made_shown_and_deleted_by_its_whole_id() {
    let lab = Lab::new().await;
    let rule = json!({ "chain": "FORWARD", "action": "DROP", "protocol": "tcp", "source": "10.0.0.0/8", "port": 25 });
    let made = lab.post("/nat/firewall", rule.clone()).await;
    let id = made.done(true)["rule_id"].as_str().unwrap().to_owned();
    let again = lab.post("/network/nat/firewall", with(rule, "description", json!("no mail"))).await;
    assert_eq!(
        (again.done(true)["rule_id"].as_str(), &again.json["data"]["description"]),
        (Some(&*id), &json!("no mail"))
    );

    let shown = lab.get("/nat/status").await.json["firewall_rules"][0].clone();
    assert_eq!(
        (&shown["id"], &shown["action"], &shown["chain"]),
        (&json!(id), &json!("DROP"), &json!("FORWARD"))
    );
    assert_eq!((&shown["source_ip"], &shown["dest_port"]), (&json!("10.0.0.0/8"), &json!(25)));
    assert_eq!(shown["installed"], true);

    lab.delete(&format!("/nat/firewall/{}", &id[..id.len() - 1]), Value::Null)
        .await
        .refused(404, "RULE_NOT_FOUND");
    lab.delete(&format!("/nat/firewall/{id}"), Value::Null).await.done(true);
    assert!(lab.fake.filter.rules().is_empty());
}

#[tokio::test]
async fn nobody_locks_himself_out_by_accident() {
    let (engine, fake) = {
        let fake = Fake::new();
        let options = crate::engine::Options { api_port: Some(8000), ..Default::default() };
        (fake.start(options).await.unwrap(), fake)
    };
    let lab = Lab { router: router(engine, options()), fake };
    let drop = json!({ "chain": "INPUT", "action": "DROP", "protocol": "all" });
    let refused = lab.post("/nat/firewall", drop.clone()).await;
    assert!(refused.refused(409, "FIREWALL_LOCKOUT").json["hint"].as_str().unwrap().contains("ACCEPT"));

    let accept = json!({ "chain": "INPUT", "action": "ACCEPT", "protocol": "all", "interface": "lo" });
    let id = lab.post("/nat/firewall", accept).await.done(true)["rule_id"].as_str().unwrap().to_owned();
    let warned = lab.post("/nat/firewall", drop.clone()).await;
    assert_eq!(
        warned.done(true)["warnings"].as_array().unwrap().len(),
        1,
        "others are cut off: {}",
        warned.text
    );
    lab.delete(&format!("/nat/firewall/{id}"), Value::Null).await.refused(409, "FIREWALL_LOCKOUT");
    lab.delete(&format!("/nat/firewall/{id}?force=true"), Value::Null).await.done(true);
    assert_eq!(
        lab.post("/nat/flush-firewall", Value::Null).await.done(true)["removed"].as_array().unwrap().len(),
        1
    );
    lab.post("/nat/firewall", with(drop, "force", json!(true))).await.done(true);
}

#[tokio::test]
async fn a_flush_removes_the_rules_of_its_kind_and_lists_them() {
    let lab = Lab::new().await;
    let id = lab.post("/nat/forward", ssh()).await.done(true)["rule_id"].clone();
    let rule = json!({ "chain": "FORWARD", "action": "REJECT", "protocol": "udp" });
    let kept = lab.post("/nat/firewall", rule).await.done(true)["rule_id"].clone();
    assert_eq!(lab.post("/nat/flush-nat", Value::Null).await.done(true)["removed"], json!([id]));
    lab.post("/nat/flush-nat", Value::Null).await.done(false);
    assert_eq!(lab.get("/nat/status").await.json["firewall_rules"][0]["id"], kept);
    assert_eq!(lab.post("/nat/flush-firewall", Value::Null).await.done(true)["removed"], json!([kept]));
    lab.post("/nat/flush-firewall", Value::Null).await.done(false);
}

#[tokio::test]
async fn a_firewall_rule_that_contradicts_itself_is_refused() {
    let lab = Lab::new().await;
    let rule = || json!({ "chain": "INPUT", "action": "DROP", "protocol": "tcp" });
    for (field, value) in [
        ("chain", json!("PREROUTING")),
        ("protocol", json!("icmp; reboot")),
        ("source", json!("-j ACCEPT")),
        ("interface", json!("eth0 -j ACCEPT")),
        ("port", json!(0)),
        ("description", json!("a\nb")),
    ] {
        lab.post("/nat/firewall", with(rule(), field, value)).await.refused(422, "INVALID_FIELD");
    }
    let both = with(with(rule(), "source", json!("10.0.0.0/8")), "destination", json!("2001:db8::/32"));
    lab.post("/nat/firewall", both).await.refused(422, "INVALID_FIELD");
    let icmp = with(with(rule(), "protocol", json!("icmp")), "port", json!(8));
    lab.post("/nat/firewall", icmp).await.refused(422, "INVALID_FIELD");
}

#[tokio::test]
async fn a_rule_that_is_off_or_waits_says_so() {
    let lab = Lab::new().await;
    let off = lab.post("/nat/forward", with(ssh(), "enabled", json!(false))).await;
    off.done(true);
    assert_eq!(off.json["message"], "port forward ens3:2222 -> 192.168.100.10:22 is kept, and off");
    let network =
        json!({ "source_network": "192.168.100.0/24", "output_interface": "ens3", "enabled": false });
    let off = lab.post("/nat/masquerade", network).await;
    assert!(off.json["message"].as_str().unwrap().contains("kept, and off"), "{}", off.text);

    let rule =
        json!({ "chain": "input", "action": "drop", "protocol": "tcp", "port": 25, "interface": "ens77" });
    let waits = lab.post("/nat/firewall", rule).await;
    let warnings = waits.done(true)["warnings"].as_array().unwrap();
    assert!(warnings[0].as_str().unwrap().contains("no interface ens77"), "{}", waits.text);
    let wrong = json!({ "chain": "PREROUTING", "action": "DROP", "protocol": "tcp" });
    let refused = lab.post("/nat/firewall", wrong).await;
    let why = refused.refused(422, "INVALID_FIELD").json["detail"][0]["msg"].as_str().unwrap();
    assert!(why.ends_with("must be one of: INPUT, OUTPUT, FORWARD"), "{why}");
}
