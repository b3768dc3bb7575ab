//! The price table of the configuration file: for each model what a million tokens cost, in dollars.

use serde_json::Value;

use crate::{
    config::reader::{Origin, Reader},
    domain::budget::{Price, Prices},
    yaml::{Content, Node},
};

const KEY: &str = "prices";
const KEYS: [&str; 3] = ["input", "cached_input", "output"];

/// The prices; what is wrong with them is told through the reader.
pub(super) fn prices(reader: &mut Reader<'_>) -> Prices {
    let Some((path, node)) = reader.node(KEY) else { return Prices::new() };
    let models = match &node.content {
        Content::Map(models) => models.as_slice(),
        Content::Scalar(Value::Null) => &[],
        Content::Scalar(_) | Content::List(_) => {
            reader.fault_at(node.at, KEY, "is not a map of models");
            &[]
        }
    };
    let priced = models
        .iter()
        .filter_map(|(model, node)| Some((model.name.clone(), price(reader, node, &model.name)?)));
    let prices: Prices = priced.collect();
    let names = prices.keys().cloned().collect::<Vec<_>>().join(", ");
    reader.show(KEY, names, &Origin::File { path, at: node.at });
    prices
}

fn price(reader: &mut Reader<'_>, node: &Node, model: &str) -> Option<Price> {
    let Content::Map(keys) = &node.content else {
        let message = format!("{model} is not a map; it wants {}", KEYS.join(", "));
        reader.fault_at(node.at, KEY, &message);
        return None;
    };
    for (key, _) in keys.iter().filter(|(key, _)| !KEYS.contains(&key.name.as_str())) {
        let message =
            format!("{model}.{}: there is no such key; there are {}", key.name, KEYS.join(", "));
        reader.fault_at(key.at, KEY, &message);
    }
    let mut dollars = |name: &str| {
        let found = keys.iter().find(|(key, _)| key.name == name);
        let number = found.and_then(|(_, node)| match &node.content {
            Content::Scalar(value) => value.as_f64(),
            Content::List(_) | Content::Map(_) => None,
        });
        let is_price = |price: &f64| price.is_finite() && *price >= 0.0;
        let price = number.filter(is_price);
        if price.is_none() {
            let message =
                format!("{model}.{name}: a price in dollars for a million tokens is wanted");
            reader.fault_at(found.map_or(node.at, |(_, node)| node.at), KEY, &message);
        }
        price
    };
    let (input, cached_input, output) =
        (dollars("input"), dollars("cached_input"), dollars("output"));
    Some(Price { input: input?, cached_input: cached_input?, output: output? })
}
