//! The workspace's own rules as tests: who may depend on whom, under which licences, and how files open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// Our crates, and those of ours that each may name. DESIGN: dependencies point down, roles never use each other.
const MAY_USE: &[(&str, &[&str])] = &[
    ("wayfix-protocol", &[]),
    ("wayfix-daemon", &[]),
    ("wayfix-maps", &["wayfix-protocol"]),
    ("wayfix-backends", &["wayfix-protocol", "wayfix-daemon"]),
    ("wayfix-phone", &["wayfix-protocol"]),
    ("wayfix-edge", &["wayfix-protocol", "wayfix-backends", "wayfix-daemon"]),
    ("wayfix-processor", &["wayfix-protocol", "wayfix-maps", "wayfix-backends", "wayfix-daemon"]),
    ("wayfix-gateway", &["wayfix-protocol", "wayfix-maps", "wayfix-backends", "wayfix-daemon"]),
    ("wayfix-fleet", &["wayfix-protocol", "wayfix-maps", "wayfix-phone"]),
];

/// What speaks to brokers, caches and databases: named by `backends` alone.
const BACKEND_CLIENTS: &[&str] =
    &["rdkafka", "redis", "tokio-postgres", "deadpool-postgres", "rusqlite", "fjall", "object_store", "sqlx"];

/// The benches measure what `backends` built beside a bare database.
const MAY_NAME_CLIENTS: &[&str] = &["wayfix-backends", "wayfix-benches"];

/// What `protocol` and `maps` must not even reach: runtimes, sockets, brokers.
const SHELLS: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "mio",
    "socket2",
    "hyper",
    "reqwest",
    "axum",
    "quinn",
    "quinn-udp",
    "rdkafka",
    "redis",
    "rusqlite",
    "fjall",
];

/// SPDX expressions we take. WTFPL and MPL come with osmpbfreader alone, in the importer; see docs/decisions/0001.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "Unicode-3.0",
    "CC0-1.0",
    "BSL-1.0",
    "Unlicense",
    "OpenSSL",
    "CDLA-Permissive-2.0",
    "MIT-0",
    "bzip2-1.0.6",
];
const LICENCE_EXCEPTIONS: &[(&str, &str)] = &[
    ("osmpbfreader", "WTFPL"),
    ("osm_pbf_iter", "WTFPL"),
    ("par-map", "WTFPL"),
    ("pub-iterator-type", "WTFPL"),
    ("smartstring", "MPL-2.0+"),
];

/// Unmaintained, or a second of what we have: never to come in.
const BANNED: &[&str] =
    &["openssl", "openssl-sys", "native-tls", "ring", "bincode-next", "rumqttc", "rumqttd", "a2", "web-push"];

/// What servers run on; crates for other systems are in the lock file but not in the binary.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .other_options(["--locked", "--filter-platform", PLATFORM].map(String::from).to_vec())
        .exec()
        .expect("cargo describes the workspace")
}

#[test]
fn crates_use_only_those_below_them() {
    let metadata = metadata();
    let mut wrong = Vec::new();
    for (name, may) in MAY_USE {
        let package = metadata.packages.iter().find(|p| p.name.as_str() == *name).expect("the crate is there");
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            if dependency.name.starts_with("wayfix") && !may.contains(&dependency.name.as_str()) {
                wrong.push(format!("{name} uses {}", dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_backends_names_brokers_and_databases() {
    let metadata = metadata();
    let ours = metadata.workspace_packages();
    let wrong: Vec<String> = ours
        .iter()
        .filter(|package| !MAY_NAME_CLIENTS.contains(&package.name.as_str()))
        .flat_map(|package| package.dependencies.iter().map(move |d| (package.name.to_string(), d.name.clone())))
        .filter(|(_, name)| BACKEND_CLIENTS.contains(&name.as_str()))
        .map(|(package, name)| format!("{package} names {name}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn protocol_and_maps_reach_no_runtime_socket_or_broker() {
    let metadata = metadata();
    let graph = normal_dependencies(&metadata);
    for name in ["wayfix-protocol", "wayfix-maps"] {
        let start = &metadata.packages.iter().find(|p| p.name.as_str() == name).expect("the crate is there").id;
        let reached = reach(&graph, start);
        let wrong: Vec<&str> = reached
            .iter()
            .map(|id| metadata[id].name.as_str())
            .filter(|dependency| SHELLS.contains(dependency))
            .collect();
        assert!(wrong.is_empty(), "{name} reaches {wrong:?}");
    }
}

#[test]
fn all_that_is_shipped_has_a_licence_we_take_and_nothing_banned() {
    let shipped = shipped();
    assert!(shipped.len() > 100, "cargo names what is shipped: {shipped:?}");
    let mut wrong = Vec::new();
    for (name, licence) in &shipped {
        if BANNED.contains(&name.as_str()) {
            wrong.push(format!("{name} is banned"));
        }
        if !LICENCE_EXCEPTIONS.contains(&(name, licence)) && !is_taken(licence) {
            wrong.push(format!("{name} is under {licence:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn all_crates_that_are_not_ours_come_from_the_registry() {
    let metadata = metadata();
    let foreign: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| package.source.as_ref().is_some_and(|source| !source.repr.starts_with("registry+")))
        .map(|package| package.name.to_string())
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

/// Name and licence of every crate in the binary. From `cargo tree`, which knows which optional parts are really
/// built; the metadata lists them all.
fn shipped() -> BTreeSet<(String, String)> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = std::process::Command::new(program)
        .args(["tree", "--package", "wayfix", "--edges", "normal", "--prefix", "none", "--locked"])
        .args(["--target", PLATFORM, "--format", "{p}|{l}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo tree runs");
    let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let rows = text.lines().filter_map(|line| line.trim_end_matches(" (*)").split_once('|'));
    rows.map(|(package, licence)| (package.split(' ').next().unwrap_or("").to_string(), licence.to_string())).collect()
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut silent = Vec::new();
    let folders = [
        "src",
        "protocol",
        "maps",
        "daemon",
        "backends",
        "edge",
        "processor",
        "gateway",
        "phone",
        "fleet",
        "xtask",
        "benches",
        "tests",
    ];
    for folder in folders {
        for file in rust_files(&root.join(folder)) {
            let text = std::fs::read_to_string(&file).expect("a source file can be read");
            if !text.starts_with("//!") {
                silent.push(file);
            }
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
}

/// An expression is taken when every AND part has an OR alternative that is.
fn is_taken(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], " ");
    expression.split(" AND ").all(|part| {
        part.split(" OR ").any(|licence| {
            let licence = licence.trim().trim_end_matches(" WITH LLVM-exception");
            LICENCES.contains(&licence)
        })
    })
}

fn normal_dependencies(metadata: &Metadata) -> BTreeMap<PackageId, Vec<PackageId>> {
    let resolve = metadata.resolve.as_ref().expect("cargo resolved the workspace");
    let is_normal = |kinds: &[cargo_metadata::DepKindInfo]| kinds.iter().any(|k| k.kind == DependencyKind::Normal);
    resolve
        .nodes
        .iter()
        .map(|node| {
            let normal = node.deps.iter().filter(|d| is_normal(&d.dep_kinds)).map(|d| d.pkg.clone()).collect();
            (node.id.clone(), normal)
        })
        .collect()
}

fn reach(graph: &BTreeMap<PackageId, Vec<PackageId>>, start: &PackageId) -> BTreeSet<PackageId> {
    let mut reached = BTreeSet::new();
    let mut ahead = vec![start.clone()];
    while let Some(id) = ahead.pop() {
        if reached.insert(id.clone()) {
            ahead.extend(graph.get(&id).into_iter().flatten().cloned());
        }
    }
    reached
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Modules that are state machines and nothing else: the same calls give the same answers on any machine at any time.
const PURE: &[&str] = &[
    "processor/src/track",
    "processor/src/learner/core.rs",
    "processor/src/learner/trips.rs",
    "processor/src/learner/drivers.rs",
    "processor/src/learner/counts.rs",
    "edge/src/intake",
    "gateway/src/hub",
    "phone/src/client",
];

/// What would make a difference from one machine, or one time, to another.
const IMPURE: &[&str] = &[
    "Instant",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "File::",
    "TcpStream",
    "UdpSocket",
    "tokio",
    "rand::",
    "backends::",
    "daemon::",
];

/// A type that only lies in the wrong crate.
const NOT_IMPURE: &[&str] = &["use backends::live_store::LiveDriver;"];

/// Randomly seeded maps have another order in each process: the fold may not have one at all.
const UNORDERED: &[&str] = &["HashMap", "HashSet"];

#[test]
fn pure_modules_use_no_clock_file_socket_runtime_or_backend() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for module in PURE {
        let path = root.join(module);
        let files = if path.is_dir() { rust_files(&path) } else { vec![path.clone()] };
        assert!(files.iter().all(|file| file.exists()) && !files.is_empty(), "{module} is not there");
        let is_fold = *module == "processor/src/track";
        for file in files.iter().filter(|file| !is_of_tests(file)) {
            let text = std::fs::read_to_string(file).expect("a source file is text");
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in lines.filter(|line| !NOT_IMPURE.contains(&line.trim())) {
                let forbidden = IMPURE.iter().chain(UNORDERED.iter().filter(|_| is_fold));
                wrong.extend(forbidden.filter(|word| line.contains(**word)).map(|word| format!("{file:?}: {word}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn is_of_tests(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "tests.rs") || file.components().any(|part| part.as_os_str() == "tests")
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    assert!(is_taken("MIT OR GPL-3.0"));
    assert!(is_taken("(Apache-2.0 OR MIT) AND BSD-3-Clause"));
    assert!(is_taken("Apache-2.0 WITH LLVM-exception"));
    assert!(!is_taken("GPL-3.0-only"));
    assert!(!is_taken("MIT AND GPL-3.0-only"));
    assert!(!is_taken("none stated"));
}
