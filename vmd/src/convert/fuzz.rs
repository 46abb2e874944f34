//! Specs of machines.

use super::{emit, parse};
use crate::fuzz::Outcome;
use prost::Message as _;
use proto::vmd::v1 as wire;

/// A machine: a byte, its length in two, and the message.
///
/// # Errors
/// Why it is refused.
pub fn specs(data: &[u8]) -> Outcome {
    let message = data.get(3..).ok_or("too short")?;
    let vm = wire::Vm::decode(message).map_err(|_| "no message")?;
    let reason = |fault: shared::fault::Fault| {
        assert_eq!(fault.kind(), shared::fault::Kind::InvalidArgument, "{}", fault.chain());
        assert!(!fault.hints().is_empty(), "{fault}");
        assert!(!fault.chain().chars().any(char::is_control), "{:?}", fault.chain());
        fault.reason().to_owned()
    };
    let name = parse::resource(&vm.name).map_err(reason)?;
    let labels = parse::labels(vm.labels).map_err(reason)?;
    let spec = parse::spec(vm.spec.ok_or("no spec")?).map_err(reason)?;
    assert_eq!(parse::resource(&format!("vms/{name}")).map_err(reason)?, name);
    assert_eq!(parse::labels(labels.clone().into_iter().collect()).map_err(reason)?, labels);
    assert_eq!(parse::spec(emit::spec(&spec)).map_err(reason)?, spec, "what is shown is not what is meant");
    Ok(())
}
