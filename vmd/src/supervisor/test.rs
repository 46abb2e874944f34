use super::*;
use crate::model::{Nic, NicModel};

fn spec(macs: &[Option<&str>]) -> Spec {
    let nic = |mac: &Option<&str>| Nic {
        network: "lan".parse().unwrap(),
        mac: mac.map(|text| text.parse().unwrap()),
        model: NicModel::Virtio,
    };
    Spec {
        vcpus: 1,
        memory_bytes: 1 << 20,
        cpu_model: None,
        disks: vec![],
        kernel_boot: None,
        nics: macs.iter().map(nic).collect(),
        vnc: None,
    }
}

#[test]
fn derived_macs_are_stable_and_step_aside() {
    let name: Name = "web".parse().unwrap();
    let free = choose_macs(&name, &spec(&[None, None]), &BTreeMap::new()).unwrap();
    assert_eq!(free, choose_macs(&name, &spec(&[None, None]), &BTreeMap::new()).unwrap());
    assert_ne!(free[0], free[1]);
    let taken = BTreeMap::from([(free[0], "other".parse().unwrap())]);
    let salted = choose_macs(&name, &spec(&[None, None]), &taken).unwrap();
    assert_eq!(salted, [Mac::derived("vms/web/nics/0", 1), free[1]]);
    // A MAC that the spec names later is not given to an earlier NIC.
    let later = choose_macs(&name, &spec(&[None, Some(&free[0].to_string())]), &BTreeMap::new()).unwrap();
    assert_eq!(later, [Mac::derived("vms/web/nics/0", 1), free[0]]);
}

#[test]
fn a_mac_of_another_machine_is_refused_by_its_name() {
    let mac = "52:54:00:00:00:01";
    let taken = BTreeMap::from([(mac.parse().unwrap(), "other".parse().unwrap())]);
    let fault = choose_macs(&"web".parse().unwrap(), &spec(&[Some(mac)]), &taken).unwrap_err();
    assert_eq!((fault.kind(), fault.reason()), (Kind::AlreadyExists, "MAC_TAKEN"));
    assert!(fault.to_string().contains("`other`"));
}
