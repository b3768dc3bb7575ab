//! Maps of the configuration whose keys are names of the operator's own: backends, roles. Each entry has keys that are
//! known, and what is wrong with one is told at its place.

use serde_json::Value;

use crate::{
    config::reader::{Origin, Reader, SettingValue},
    yaml::{Content, Key, Node, Place},
};

/// One entry of such a map.
pub(super) struct Entry {
    /// The map's key in the file.
    map: &'static str,
    pub(super) name: String,
    at: Place,
    keys: Vec<(Key, Node)>,
}

/// The entries of the map at `map`, each of which may have the keys `known`; what is wrong is told through the reader.
pub(super) fn entries(reader: &mut Reader<'_>, map: &'static str, known: &[&str]) -> Vec<Entry> {
    let Some((path, node)) = reader.node(map) else { return Vec::new() };
    let Content::Map(found) = &node.content else {
        if !matches!(node.content, Content::Scalar(Value::Null)) {
            reader.fault_at(node.at, map, "is not a map of names");
        }
        return Vec::new();
    };
    let entry = |(key, node): &(Key, Node)| {
        let keys = match &node.content {
            Content::Map(keys) => keys.clone(),
            Content::Scalar(_) | Content::List(_) => {
                let message =
                    format!("{} is not a map; it wants some of {}", key.name, known.join(", "));
                reader.fault_at(node.at, map, &message);
                return None;
            }
        };
        for (unknown, _) in keys.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
            let name = format!("{}.{}", key.name, unknown.name);
            let message = format!("{name}: there is no such key; there are {}", known.join(", "));
            reader.fault_at(unknown.at, map, &message);
        }
        Some(Entry { map, name: key.name.clone(), at: key.at, keys })
    };
    let entries: Vec<Entry> = found.iter().filter_map(entry).collect();
    let names = entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
    reader.show(map, names, &Origin::File { path, at: node.at });
    entries
}

impl Entry {
    /// What stands there under `name`.
    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.keys.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// The value under `name`; none where there is none, or it is wrong, which is told.
    pub(super) fn take<T: SettingValue>(&self, reader: &mut Reader<'_>, name: &str) -> Option<T> {
        let node = self.node(name)?;
        let value = match &node.content {
            Content::Scalar(Value::Null) => return None,
            Content::Scalar(value) => T::from_scalar(value),
            Content::List(_) | Content::Map(_) => Err("is not one value".to_owned()),
        };
        value.map_err(|message| self.fault(reader, name, &message)).ok()
    }

    /// Says what is wrong with what stands under `name`.
    pub(super) fn fault(&self, reader: &mut Reader<'_>, name: &str, message: &str) {
        let at = self.node(name).map_or(self.at, |node| node.at);
        reader.fault_at(at, self.map, &format!("{}.{name}: {message}", self.name));
    }
}
