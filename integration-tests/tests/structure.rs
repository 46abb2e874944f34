//! What ARCHITECTURE.md promises about the source itself.

use integration_tests::host::workspace;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Crates of ours that each crate may depend on, tests aside.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("proto", &[]),
    ("shared", &["proto"]),
    ("netd", &["proto", "shared"]),
    ("vmd", &["proto", "shared"]),
    ("kvmctl", &["proto", "shared"]),
    ("integration-tests", &["proto", "shared"]),
    ("mutate", &[]),
];

/// Longest source file, in lines before its tests.
const LONGEST: usize = 500;

fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for (krate, _) in ALLOWED {
        let krate = if krate == "mutate" { "integration-tests/mutate" } else { krate };
        walk(&workspace().join(krate).join("src"), &mut found);
    }
    assert!(found.len() > 30, "the sources were not found");
    found
}

#[test]
fn crates_depend_only_downwards() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace())
        .output()
        .expect("cargo metadata");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    assert_eq!(packages.len(), allowed.len());
    for package in packages {
        let name = package["name"].as_str().expect("name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let on = dependency["name"].as_str().expect("name");
            let ours = allowed.contains_key(on) && dependency["kind"].is_null();
            assert!(!ours || allowed[name].contains(&on), "`{name}` depends on `{on}`");
        }
    }
}

#[test]
fn only_netds_kernel_folder_knows_the_kernels_types() {
    for path in sources() {
        let text = fs::read_to_string(&path).expect("source");
        let path = path.display().to_string();
        if path.contains("/test") {
            continue;
        }
        for (word, home) in [("rtnetlink", "netd/src/kernel"), ("nftables::", "netd/src/kernel")] {
            assert!(!text.contains(&format!("use {word}")) || path.contains(home), "{path} uses {word}");
        }
        let pure = [
            "netd/src/plan.rs",
            "netd/src/plan/shape.rs",
            "netd/src/capture/pcapng.rs",
            "netd/src/alloc.rs",
            "netd/src/diagnose/nft.rs",
            "netd/src/diagnose/iptables.rs",
            "netd/src/diagnose/eval.rs",
            "netd/src/diagnose/probe.rs",
            "netd/src/diagnose/health.rs",
            "netd/src/diagnose/why.rs",
            "netd/src/kernel/ruleset.rs",
            "vmd/src/machine.rs",
        ];
        if pure.iter().any(|pure| path.ends_with(pure)) {
            for impure in ["async fn", "std::fs", "tokio::", "Instant", "SystemTime"] {
                assert!(!text.contains(impure), "{path} is pure, and has `{impure}`");
            }
        }
    }
}

#[test]
fn source_files_are_short() {
    for path in sources() {
        let text = fs::read_to_string(&path).expect("source");
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        let test_support = path.ends_with("fake.rs") || path.to_string_lossy().contains("test");
        assert!(lines <= LONGEST || test_support, "{} has {lines} lines before its tests", path.display());
    }
}

/// FAULTS.md has each row, and each test that it names is there.
#[test]
fn every_fault_has_its_test_or_its_reason() {
    let table = fs::read_to_string(workspace().join("integration-tests/FAULTS.md")).expect("FAULTS.md");
    let mut rows = Vec::new();
    for line in table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| #") && !line.starts_with("| -"))
    {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [number, _, _, proof] = cells[..] else { panic!("`{line}` has not four cells") };
        rows.push(number.parse::<u32>().unwrap_or_else(|_| panic!("`{line}` has no number")));
        let named: Vec<&str> =
            proof.split('`').skip(1).step_by(2).filter(|word| word.contains(".rs::")).collect();
        assert!(!named.is_empty() || proof.contains("not here: "), "{line}");
        for test in named {
            let (file, name) = test.split_once("::").expect("a file and a test");
            let places = [workspace().join("integration-tests/tests").join(file), workspace().join(file)];
            let at =
                places.into_iter().find(|at| at.exists()).unwrap_or_else(|| panic!("there is no {file}"));
            let source = fs::read_to_string(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
            assert!(source.contains(&format!("fn {name}(")), "there is no `{name}` in {}", at.display());
        }
    }
    assert_eq!(rows, (1..=69).collect::<Vec<_>>(), "each row once, in order");
}

#[test]
fn every_element_of_the_api_has_a_comment() {
    for folder in ["proto/access/v1", "proto/events/v1", "proto/netd/v1", "proto/vmd/v1"] {
        for entry in fs::read_dir(workspace().join(folder)).expect("folder").flatten() {
            let text = fs::read_to_string(entry.path()).expect("proto");
            let mut before = "";
            for line in text.lines() {
                let code = line.trim();
                let declares =
                    ["service ", "rpc ", "message ", "enum "].iter().any(|word| code.starts_with(word));
                let commented = before.trim().starts_with("//") || before.trim().is_empty() && !declares;
                assert!(!declares || commented, "{}: `{code}` has no comment", entry.path().display());
                before = line;
            }
        }
    }
}
