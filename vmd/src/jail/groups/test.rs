//! On folders that look like cgroup v2.

use super::*;

/// A tree with a group that has these controllers.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(host: &str, group: &str) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        fs::write(tree.path("cgroup.controllers"), host).unwrap();
        for name in ["g", "g/vmd"] {
            fs::create_dir(tree.path(name)).unwrap();
            fs::write(tree.path(name).join("cgroup.procs"), "").unwrap();
        }
        fs::write(tree.path("g/cgroup.controllers"), group).unwrap();
        fs::write(tree.path("g/cgroup.subtree_control"), "").unwrap();
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn place(&self, own: &str) -> Place {
        Place { mount: self.0.path().to_owned(), own: Some(self.path(own)) }
    }

    fn control(&self) -> String {
        fs::read_to_string(self.path("g/cgroup.subtree_control")).unwrap()
    }
}

/// Layers that hold, and reasons of the others.
fn told(groups: &Groups) -> (Vec<Layer>, Vec<&str>) {
    let holds = groups.findings().iter().filter(|finding| finding.holds).map(|finding| finding.layer);
    let reasons = groups.findings().iter().filter(|finding| !finding.holds);
    (holds.collect(), reasons.map(|finding| finding.reason.as_str()).collect())
}

#[test]
fn the_group_above_vmds_own_is_divided() {
    let tree = Tree::new("cpu memory pids", "pids");
    let groups = Groups::of(Some(&tree.place("g/vmd")), None, false);
    let (holds, reasons) = told(&groups);
    assert_eq!(holds, [Layer::ControlGroup, Layer::Processes]);
    assert!(reasons.iter().all(|reason| reason.contains("was given no")), "{reasons:?}");
    assert_eq!(tree.control(), "+pids");
    let leaf = groups.leaf(&"web".parse().unwrap()).unwrap();
    assert_eq!(leaf.folder(), tree.path("g/vm--web"));
}

#[test]
fn a_group_that_vmd_was_started_in_gives_no_limits() {
    let tree = Tree::new("cpu memory pids", "cpu memory pids");
    let groups = Groups::of(Some(&tree.place("g")), None, false);
    let (holds, reasons) = told(&groups);
    assert_eq!(holds, [Layer::ControlGroup]);
    assert!(reasons.iter().all(|reason| reason.contains("started in")), "{reasons:?}");
    assert_eq!(tree.control(), "");
    // Where it was named, whoever starts vmd knows of that.
    let groups = Groups::of(Some(&tree.place("g")), Some(&tree.path("g")), false);
    assert_eq!(told(&groups).0.len(), 4);
    let own = fs::read_to_string(tree.path("g/vmd/cgroup.procs")).unwrap();
    assert_eq!(own, std::process::id().to_string());
}

#[test]
fn what_the_host_has_not_is_absent_and_what_vmd_was_not_given_is_not() {
    let tree = Tree::new("pids", "pids");
    let absent = |groups: &Groups| -> Vec<Layer> {
        groups.findings().iter().filter(|finding| finding.absent).map(|finding| finding.layer).collect()
    };
    let groups = Groups::of(Some(&tree.place("g/vmd")), None, false);
    assert_eq!(absent(&groups), [Layer::Memory, Layer::Cpu]);
    // Root may write anywhere: without systemd's mark it is not its group.
    let groups = Groups::of(Some(&tree.place("g/vmd")), None, true);
    let (holds, reasons) = told(&groups);
    assert_eq!(holds, []);
    assert!(reasons[0].contains("not vmd's to divide"), "{reasons:?}");
    assert_eq!(absent(&groups), [Layer::Memory, Layer::Cpu]);
    let groups = Groups::of(None, None, false);
    assert_eq!(absent(&groups).len(), 4);
    assert!(groups.leaf(&"web".parse().unwrap()).is_none());
}

#[test]
fn a_named_group_has_to_be_one_that_vmd_can_use() {
    let tree = Tree::new("pids", "pids");
    for (named, word) in [("/nowhere/g", "not beneath"), ("missing", "not there")] {
        let groups = Groups::of(Some(&tree.place("g/vmd")), Some(&tree.path(named)), false);
        let (_, reasons) = told(&groups);
        assert!(reasons[0].contains(word), "{reasons:?}");
        assert!(groups.leaves().is_empty());
    }
}

#[test]
fn groups_of_other_states_are_not_ones_own() {
    let tree = Tree::new("pids", "pids");
    let marked =
        |mark: &str| Groups { mark: mark.to_owned(), ..Groups::of(Some(&tree.place("g/vmd")), None, false) };
    let (own, other) = (marked("0123abcd"), marked("4567abcd"));
    let web = "web".parse().unwrap();
    for leaf in [&own, &other].map(|groups| groups.leaf(&web).unwrap()) {
        leaf.make(&[]).unwrap();
    }
    for name in ["vm-gone", "vm-0123abcd-gone", "vm-0123abcde-x", "other", "vmx", "probe-0123abcd"] {
        fs::create_dir(tree.path("g").join(name)).unwrap();
    }
    let leaf = |machine: &str| {
        let folder = tree.path("g").join(format!("vm-0123abcd-{machine}"));
        (machine.to_owned(), Leaf::at(folder))
    };
    assert_eq!(own.leaves(), [leaf("gone"), leaf("web")].into());
    assert_eq!(other.leaves().len(), 1);
    assert_ne!(own.probe(), other.probe());
}
