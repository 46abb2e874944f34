//! Resource names, as the API has them.

use shared::name::Name;

/// `networks/NAME`.
pub fn network(name: &Name) -> String {
    format!("networks/{name}")
}

/// `networks/NETWORK/ports/NAME`.
pub fn port(network: &Name, name: &Name) -> String {
    format!("networks/{network}/ports/{name}")
}

/// `networks/NETWORK/forwards/NAME`; `-` for the name that netd makes.
pub fn forward(network: &Name, name: &str) -> String {
    format!("networks/{network}/forwards/{name}")
}

/// `groups/NAME`.
pub fn group(name: &Name) -> String {
    format!("groups/{name}")
}

/// `vms/NAME`.
pub fn vm(name: &Name) -> String {
    format!("vms/{name}")
}
