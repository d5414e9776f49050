//! The contracts are held to what is served, and what is served to the contracts.

use std::collections::BTreeSet;

use super::*;
use crate::api::contract::{ASYNCAPI, OPENAPI};
use crate::api::problem::ProblemKind;
use crate::api::routes;
use crate::hub::FrameKind;

#[test]
fn every_route_is_in_the_contract_and_every_path_of_the_contract_is_a_route() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let promised: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())))
        .collect();
    let mut served: BTreeSet<(String, String)> =
        routes().iter().map(|route| (route.path.to_string(), route.method.to_string())).collect();
    // The edge's doors, which stand beside ours; tests/it holds them to the contract.
    served.extend(EDGE_DOORS.map(|path| (path.to_string(), "post".to_string())));

    assert_eq!(promised, served);
}

#[test]
fn every_reference_of_a_contract_leads_somewhere() {
    for text in [OPENAPI, ASYNCAPI] {
        let document: Value = serde_json::from_str(text).unwrap();
        let mut found = 0;
        walk(&document, &mut |value| {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
                found += 1;
            }
        });
        assert!(found > 10);
    }
}

#[test]
fn every_kind_of_frame_and_every_status_of_a_problem_is_in_the_contract() {
    let openapi: Value = serde_json::from_str(OPENAPI).unwrap();
    let asyncapi: Value = serde_json::from_str(ASYNCAPI).unwrap();
    let names: BTreeSet<&str> = asyncapi["components"]["messages"]
        .as_object()
        .unwrap()
        .values()
        .map(|message| message["name"].as_str().unwrap())
        .collect();

    for kind in FrameKind::ALL {
        assert!(names.contains(kind.name()), "{}", kind.name());
    }
    for kind in ProblemKind::ALL {
        let status = kind.words().0.as_u16();
        if status == 405 {
            continue; // belongs to no path of the contract
        }
        assert!(openapi["components"]["responses"][format!("Problem{status}")].is_object(), "{status}");
    }
}

/// Every field that is answered is described, and every field that must be there is.
#[tokio::test]
async fn answers_have_the_fields_that_the_contract_says() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let keyframe = world.keyframe(tenant.delivery, 1, Some(at(0.0, world.now()))).await;
    let driver = DriverKey { tenant: tenant.id, driver: tenant.driver };
    world.publish(vec![keyframe, driver_update(driver, 1, Some(at(0.0, world.now())), world.now())]).await;
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let delivery = format!("/api/v1/deliveries/{}", tenant.delivery.delivery);
    let status = format!("/api/v1/tracking/{}/status", tenant.delivery.delivery);

    let answers = [
        ("Delivery", server.get(&delivery, &tenant.key).await.1),
        ("DeliveryMade", server.post("/api/v1/deliveries", &tenant.key, two_stops()).await.1),
        ("Deliveries", server.get("/api/v1/deliveries?limit=1", &tenant.key).await.1),
        ("TokenMade", server.post(&format!("{delivery}/token"), &tenant.key, json!({})).await.1),
        ("Drivers", server.get("/api/v1/drivers", &tenant.key).await.1),
        ("DeviceMade", server.post("/api/v1/devices", &tenant.key, json!({"driver": tenant.driver})).await.1),
        ("SessionGrant", server.post("/api/v1/sessions", &tenant.credential, json!({})).await.1),
        ("TenantMade", server.post("/api/v1/tenants", ADMIN_KEY, json!({"name": "x"})).await.1),
        ("Link", server.get("/api/v1/tracking/link", &tenant.token).await.1),
        ("SnapshotFrame", server.get(&status, &tenant.token).await.1),
        ("MapSnapshot", server.get("/api/v1/map/status", &tenant.key).await.1),
        ("Problem", server.get("/api/v1/deliveries/9", &tenant.key).await.1),
        ("Problem", server.post(&format!("{delivery}/status"), &tenant.key, json!({"status": "ready"})).await.1),
    ];

    for (name, answer) in answers {
        check(&document, &document["components"]["schemas"][name], &answer, name);
    }
}

fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return check(document, document.pointer(&reference[1..]).unwrap(), value, place);
    }
    if let Some(options) = schema.get("oneOf").and_then(Value::as_array) {
        let some = options.iter().find(|option| option["type"] != "null").unwrap();
        if !value.is_null() {
            check(document, some, value, place);
        }
        return;
    }
    if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
        assert!(choices.contains(value), "{place} is {value}");
    }
    if let Some(name) = schema.get("type").and_then(Value::as_str) {
        assert!(is_of_type(value, name), "{place} is no {name}: {value}");
    }
    if let Some(items) = schema.get("items") {
        let values = value.as_array().unwrap_or_else(|| panic!("{place} is no list: {value}"));
        values.iter().enumerate().for_each(|(n, item)| check(document, items, item, &format!("{place}[{n}]")));
    }
    let parts: Vec<&Value> = match schema.get("allOf").and_then(Value::as_array) {
        Some(parts) => parts.iter().map(|part| resolved(document, part)).collect(),
        None => vec![schema],
    };
    if parts.iter().all(|part| part.get("properties").is_none()) {
        return;
    }
    let fields = value.as_object().unwrap_or_else(|| panic!("{place} is no object: {value}"));
    for (name, field) in fields {
        let described = parts.iter().find_map(|part| part["properties"].get(name));
        let described = described.unwrap_or_else(|| panic!("{place}.{name} is not in the contract"));
        check(document, described, field, &format!("{place}.{name}"));
    }
    for required in parts.iter().flat_map(|part| part["required"].as_array().into_iter().flatten()) {
        assert!(fields.contains_key(required.as_str().unwrap()), "{place} has no {required}");
    }
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => panic!("no type of JSON is called {name}"),
    }
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => schema,
    }
}

fn walk(value: &Value, see: &mut impl FnMut(&Value)) {
    see(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, see)),
        Value::Object(fields) => fields.values().for_each(|field| walk(field, see)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

const EDGE_DOORS: [&str; 2] = ["/api/v1/tracking/locations", "/v1/datagrams"];
