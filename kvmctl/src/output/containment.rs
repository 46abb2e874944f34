//! What keeps a machine's QEMU in, as it is printed.

use super::set;
use proto::vmd::v1 as wire;
use serde::Serialize;

/// A layer of containment.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// A word, such as own-user.
    pub layer: String,
    /// It does.
    pub holds: bool,
    /// Why it does not; or what is to be known of one that does.
    pub reason: Option<String>,
    /// What to do where it does not.
    pub hint: Option<String>,
}

/// Of an answer.
pub(super) fn layers(layers: Vec<wire::ContainmentLayer>) -> Vec<Layer> {
    let word = |value: i32| match wire::Containment::try_from(value) {
        Ok(known) => known.as_str_name().trim_start_matches("CONTAINMENT_").to_lowercase().replace('_', "-"),
        // Of a newer vmd.
        Err(_) => format!("layer-{value}"),
    };
    layers
        .into_iter()
        .map(|layer| Layer {
            layer: word(layer.layer),
            holds: layer.holds,
            reason: set(layer.reason),
            hint: set(layer.hint),
        })
        .collect()
}

/// Those that hold; `None` if nothing is known.
pub(super) fn contained(layers: &[Layer]) -> Option<String> {
    let words: Vec<String> = layers
        .iter()
        .filter(|layer| layer.holds)
        .map(|layer| match &layer.reason {
            Some(reason) => format!("{} ({reason})", layer.layer),
            None => layer.layer.clone(),
        })
        .collect();
    (!layers.is_empty()).then(|| if words.is_empty() { "nothing".into() } else { words.join(", ") })
}

/// Those that do not, and why.
pub(super) fn uncontained(layers: &[Layer]) -> Vec<String> {
    layers
        .iter()
        .filter(|layer| !layer.holds)
        .map(|layer| format!("{}: {}", layer.layer, layer.reason.as_deref().unwrap_or("no reason given")))
        .collect()
}
