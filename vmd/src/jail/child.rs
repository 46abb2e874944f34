//! Carries containment out, in a process that has one thread and will be QEMU.

use super::{
    Finding, Layer, Spec, capabilities, groups::leaf, ids::Ids, limits, reach, root, syscalls, user,
};
use rustix::thread::UnshareFlags;
use std::{fs, io::Write as _, path::Path};

/// Contains this process as far as `spec` asks for it, and says of each layer asked for whether it holds. `place` is
/// the folder that QEMU would run in without a root folder of its own.
pub fn confine(spec: &Spec, place: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let wants = |layer| spec.layers.contains(&layer);
    let outside = Ids { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let mut owner = outside;
    if wants(Layer::ControlGroup) {
        // First: the group is vmd's user's.
        findings.push(Finding::of(Layer::ControlGroup, enter_group(spec)));
    }
    if wants(Layer::UserNamespace) {
        let mut found = |layer, result| findings.push(Finding::of(layer, result));
        match enter_user_namespace(spec, outside) {
            Ok(own) => {
                found(Layer::UserNamespace, Ok(()));
                if wants(Layer::OwnUser) {
                    found(Layer::OwnUser, own.clone());
                    owner = own.ok().and(spec.ids).unwrap_or(outside);
                }
                inside(spec, place, owner, &mut found);
            }
            Err(reason) => {
                found(Layer::UserNamespace, Err(reason));
                for layer in [Layer::OwnUser, Layer::Network, Layer::Files] {
                    if wants(layer) {
                        found(layer, Err("it needs a user namespace".into()));
                    }
                }
            }
        }
    }
    // After the maps: newuidmap gains a privilege by being executed.
    let _ = rustix::thread::set_no_new_privs(true);
    let mut found = |layer, apply: &dyn Fn() -> Result<String, String>| {
        if wants(layer) {
            findings.push(match apply() {
                Ok(reason) => Finding { reason, ..Finding::of(layer, Ok(())) },
                Err(reason) => Finding::of(layer, Err(reason)),
            });
        }
    };
    let nothing = |()| String::new();
    found(Layer::Capabilities, &|| capabilities::drop_all().map(nothing));
    found(Layer::Limits, &|| limits::set(spec.limits, owner != outside).map(nothing));
    found(Layer::Landlock, &|| reach::restrict(spec));
    // Last, since it refuses what the others need.
    found(Layer::SystemCalls, &|| syscalls::refuse().map(nothing));
    findings
}

fn enter_group(spec: &Spec) -> Result<(), String> {
    let group = spec.group.as_ref().ok_or("there is no group for it")?;
    let entered = fs::OpenOptions::new().write(true).open(group.join(leaf::MEMBERS));
    entered
        .and_then(|mut members| members.write_all(b"0"))
        .map_err(|e| format!("cannot enter `{}`: {e}", group.display()))
}

/// Whether it could be entered, and whether the machine's own ids are mapped in it.
fn enter_user_namespace(spec: &Spec, outside: Ids) -> Result<Result<(), String>, String> {
    let mapper = match spec.ids.filter(|_| spec.layers.contains(&Layer::OwnUser)) {
        Some(ids) => user::Mapper::start(ids).map_err(|e| format!("cannot start a process: {e}")),
        None => Err("there are no ids for it".into()),
    };
    user::leave()?;
    let own = mapper.and_then(user::Mapper::finish);
    if own.is_err() {
        user::map_own(outside)?;
    }
    Ok(own)
}

/// What takes the privileges that this process has in its new user namespace.
fn inside(spec: &Spec, place: &Path, owner: Ids, found: &mut dyn FnMut(Layer, Result<(), String>)) {
    if spec.layers.contains(&Layer::Network) {
        found(Layer::Network, user::unshare(UnshareFlags::NEWNET, "a network namespace"));
    }
    // Of no weight beside the others, and of no cost.
    for flags in [UnshareFlags::NEWIPC, UnshareFlags::NEWUTS, UnshareFlags::NEWCGROUP] {
        let _ = user::unshare(flags, "a namespace");
    }
    let files = spec.layers.contains(&Layer::Files).then(|| {
        user::unshare(UnshareFlags::NEWNS, "a mount namespace")
            .and_then(|()| root::prepare(spec, place, owner))
    });
    let become_user =
        if spec.ids == Some(owner) { user::become_user(owner, spec.keep_groups) } else { Ok(()) };
    if let Some(files) = files {
        let files = become_user.clone().and(files).and_then(root::Prepared::enter);
        found(Layer::Files, files);
    }
    if become_user.is_err() {
        found(Layer::OwnUser, become_user);
    }
}
