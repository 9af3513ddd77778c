//! Selectors of devices in the group resource.k8s.io: expressions about `device.driver`,
//! `device.attributes["domain"].name`, `device.capacity["domain"].name` and `device.allowMultipleAllocations`.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};

use super::ast::{Expr, Node, Op};
use super::functions::semver::Version;
use super::{CALL_LIMIT, CompileError, Environment, EvalError, Key, Meter, ObjectType, Program, Type, Value, parser};
use crate::quantity::Quantity;

const DEVICE: &str = "device";
/// Bytes that an expression may have.
pub const LONGEST: usize = 10 << 10;

/// An expression about one device.
#[derive(Debug, Clone)]
pub struct Selector {
    program: Program,
    /// Domains that it looks up as if they were there: a device without one has nothing in it.
    domains: Arc<BTreeSet<Arc<str>>>,
}

fn environment() -> Environment {
    let map = |of: Type| Type::Map(Arc::new(Type::Map(Arc::new(of))));
    let fields = [
        ("driver", Type::String),
        ("attributes", map(Type::Any)),
        ("capacity", map(Type::Other("kubernetes.Quantity"))),
        ("allowMultipleAllocations", Type::Bool),
    ];
    let fields = fields.into_iter().map(|(name, of)| (name.to_owned(), of)).collect();
    let device = ObjectType { name: "kubernetes.DRADevice".into(), fields };
    Environment::default().with(DEVICE, Type::Object(Arc::new(device)))
}

impl Selector {
    /// Reads and checks an expression.
    ///
    /// # Errors
    /// Says what is wrong with it, in upstream's words.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        let failed = |error: CompileError| CompileError::new(format!("compilation failed: {error}"));
        let program = Program::compile(source, &environment()).map_err(failed)?;
        if !program.gives_bool() {
            let gives = format!("{:?}", program.result()).to_lowercase();
            return Err(CompileError::new(format!("must evaluate to bool or the unknown type, not {gives}")));
        }
        let (mut used, mut asked) = (BTreeSet::new(), BTreeSet::new());
        domains(&parser::parse(source)?, &mut used, &mut asked);
        // Whether a domain is there is only known as long as nothing stands in for it.
        let domains = used.difference(&asked).cloned().collect();
        Ok(Self { program, domains: Arc::new(domains) })
    }

    /// Whether a driver's device is one.
    ///
    /// # Errors
    /// What the expression could not be evaluated for, as when it names an attribute that the device lacks.
    pub fn matches(&self, driver: &str, device: &Device) -> Result<bool, EvalError> {
        let mut attributes: Domains = self.empty();
        for (name, attribute) in device.attributes.iter().flatten() {
            put(&mut attributes, driver, name, value(name, attribute)?);
        }
        let mut capacity: Domains = self.empty();
        for (name, one) in device.capacity.iter().flatten() {
            let amount = Quantity::from_str(&one.value.0).map_err(|error| EvalError::new(&error.to_string()))?;
            put(&mut capacity, driver, name, Value::Quantity(amount));
        }
        let fields = [
            ("driver", Value::text(driver)),
            ("attributes", maps(attributes)?),
            ("capacity", maps(capacity)?),
            ("allowMultipleAllocations", Value::Bool(device.allow_multiple_allocations == Some(true))),
        ];
        let fields = fields.into_iter().map(|(name, value)| (Key::String(name.into()), value));
        let variables = std::collections::HashMap::from([(DEVICE, Value::map(fields.collect(), None)?)]);
        match self.program.evaluate(&variables, &mut Meter::new(CALL_LIMIT))? {
            Value::Bool(answer) => Ok(answer),
            other => {
                let kind = other.type_name();
                Err(EvalError::new(&format!("CEL result of type {kind} could not be converted to bool")))
            }
        }
    }

    fn empty(&self) -> Domains {
        self.domains.iter().map(|domain| (Key::String(Arc::clone(domain)), BTreeMap::new())).collect()
    }
}

type Domains = BTreeMap<Key, BTreeMap<Key, Value>>;

/// A name without a domain is in its driver's.
fn put(into: &mut Domains, driver: &str, name: &str, value: Value) {
    let (domain, id) = name.split_once('/').unwrap_or((driver, name));
    into.entry(Key::String(domain.into())).or_default().insert(Key::String(id.into()), value);
}

fn maps(domains: Domains) -> Result<Value, EvalError> {
    let mut all = BTreeMap::new();
    for (domain, names) in domains {
        all.insert(domain, Value::map(names, None)?);
    }
    Value::map(all, None)
}

fn value(name: &str, attribute: &DeviceAttribute) -> Result<Value, EvalError> {
    Ok(match attribute {
        DeviceAttribute { int: Some(value), .. } => Value::Int(*value),
        DeviceAttribute { bool: Some(value), .. } => Value::Bool(*value),
        DeviceAttribute { string: Some(value), .. } => Value::text(value),
        DeviceAttribute { version: Some(text), .. } => {
            let bad = |error| EvalError::new(&format!("attribute {name}: parse semantic version: {error}"));
            Value::Semver(Arc::new(Version::parse(text).map_err(bad)?))
        }
        _ => return Err(EvalError::new(&format!("attribute {name}: unsupported attribute value"))),
    })
}

/// Texts that are used to look something up, and those that are asked for by `in`.
fn domains(node: &Node, used: &mut BTreeSet<Arc<str>>, asked: &mut BTreeSet<Arc<str>>) {
    let text = |node: &Node| match &node.expr {
        Expr::Literal(Value::String(text)) => Some(Arc::clone(text)),
        _ => None,
    };
    match &node.expr {
        Expr::Index { index, .. } => used.extend(text(index)),
        Expr::Binary(Op::In, left, _) => asked.extend(text(left)),
        _ => {}
    }
    node.each_child(|child| domains(child, used, asked));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn device() -> Device {
        let device = json!({
            "name": "gpu-0",
            "attributes": {
                "model": {"string": "A100"},
                "index": {"int": 3},
                "driverVersion": {"version": "12.4.1"},
                "other.example.com/shared": {"bool": true},
            },
            "capacity": {"memory": {"value": "40Gi"}, "other.example.com/lanes": {"value": "16"}},
        });
        serde_json::from_value(device).unwrap()
    }

    fn matches(source: &str) -> Result<bool, String> {
        let selector = Selector::compile(source).map_err(|error| error.to_string())?;
        selector.matches("gpu.example.com", &device()).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_are_found_by_what_they_are() {
        for yes in [
            "device.driver == 'gpu.example.com'",
            "device.attributes['gpu.example.com'].model == 'A100'",
            "device.attributes['gpu.example.com'].index > 2",
            "device.attributes['other.example.com'].shared",
            "device.attributes['gpu.example.com'].driverVersion.isGreaterThan(semver('12.0.0'))",
            "device.capacity['gpu.example.com'].memory.compareTo(quantity('40Gi')) == 0",
            "device.capacity['gpu.example.com'].memory.isGreaterThan(quantity('32Gi'))",
            "device.capacity['other.example.com'].lanes == quantity('16')",
            "!has(device.attributes['nobody.example.com'].model)",
            "!('model' in device.attributes['nobody.example.com'])",
            "!('nobody.example.com' in device.attributes)",
            "!('nobody.example.com' in device.attributes && device.attributes['nobody.example.com'].x)",
            "cel.bind(own, device.attributes['gpu.example.com'], own.model == 'A100' && own.index == 3)",
            "!device.allowMultipleAllocations",
        ] {
            assert_eq!(matches(yes), Ok(true), "{yes}");
        }
        assert_eq!(matches("device.attributes['gpu.example.com'].model == 'B200'"), Ok(false));
    }

    #[test]
    fn what_a_device_lacks_is_an_error_and_not_a_no() {
        let lacks = matches("device.attributes['gpu.example.com'].vendor == 'x'").unwrap_err();
        assert!(lacks.contains("no such key: vendor"), "{lacks}");
        let unknown = matches("device.attributes['nobody.example.com'].model == 'x'").unwrap_err();
        assert!(unknown.contains("no such key: model"), "{unknown}");
    }

    #[test]
    fn what_is_no_selector() {
        for bad in ["device.driver ==", "device.nothing == 1", "nobody.driver == 'x'"] {
            assert!(matches(bad).unwrap_err().starts_with("compilation failed: "), "{bad}");
        }
        let text = matches("device.driver").unwrap_err();
        assert_eq!(text, "must evaluate to bool or the unknown type, not string");
    }
}
