//! Kubernetes' libraries of addresses and networks.

use std::fmt;
use std::net::IpAddr;

use super::Result1;
use crate::cel::eval::EvalError;
use crate::cel::value::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// The bits of an address, those of IPv4 on top.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => address.into(),
    }
}

impl Cidr {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let address = address_of(address)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits = length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
        let length: u8 = length.parse().ok().filter(|length| digits && *length <= most)?;
        Some(Self { address, length })
    }

    fn mask(self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0)
    }

    fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && (bits(self.address) ^ bits(address)) & self.mask() == 0
    }

    fn masked(self) -> Self {
        let network = bits(self.address) & self.mask();
        let address = match self.address {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(network >> 96).unwrap_or_default().into()),
            IpAddr::V6(_) => IpAddr::V6(network.into()),
        };
        Self { address, ..self }
    }
}

/// No zone, and no IPv4 address dressed as IPv6.
fn address_of(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let dressed = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    (!dressed).then_some(address)
}

/// `ip`, `isIP`, `cidr`, `isCIDR`
pub fn make(name: &str, text: &str) -> Result1 {
    Ok(match name {
        "isIP" => Value::Bool(address_of(text).is_some()),
        "isCIDR" => Value::Bool(Cidr::parse(text).is_some()),
        "ip" => Value::Ip(address_of(text).ok_or_else(|| {
            EvalError::new(&format!("IP Address {text:?} parse error during conversion from string: invalid address"))
        })?),
        _ => Value::Cidr(Cidr::parse(text).ok_or_else(|| {
            EvalError::new(&format!("CIDR {text:?} parse error during conversion from string: invalid network"))
        })?),
    })
}

/// `ip.isCanonical(text)`
pub fn canonical(args: &[Value]) -> Result1 {
    let [Value::String(text)] = args else { return Err(EvalError::no_overload()) };
    let Value::Ip(address) = make("ip", text)? else { return Err(EvalError::no_overload()) };
    Ok(Value::Bool(address.to_string() == **text))
}

pub fn call(target: &Value, name: &str, args: &[Value]) -> Result1 {
    Ok(match (target, name, args) {
        (Value::Ip(ip), "family", []) => Value::Int(if ip.is_ipv4() { 4 } else { 6 }),
        (Value::Ip(ip), "isUnspecified", []) => Value::Bool(ip.is_unspecified()),
        (Value::Ip(ip), "isLoopback", []) => Value::Bool(ip.is_loopback()),
        (Value::Ip(ip), "isLinkLocalMulticast", []) => Value::Bool(match ip {
            IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
            IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
        }),
        (Value::Ip(ip), "isLinkLocalUnicast", []) => Value::Bool(link_local(*ip)),
        (Value::Ip(ip), "isGlobalUnicast", []) => {
            let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
            let other = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local(*ip);
            Value::Bool(!broadcast && !other)
        }
        (Value::Cidr(cidr), "containsIP", [Value::Ip(ip)]) => Value::Bool(cidr.contains(*ip)),
        (Value::Cidr(cidr), "containsIP", [Value::String(text)]) => {
            let Value::Ip(ip) = make("ip", text)? else { return Err(EvalError::no_overload()) };
            Value::Bool(cidr.contains(ip))
        }
        (Value::Cidr(cidr), "containsCIDR", [other]) => {
            let made = if let Value::String(text) = other { make("cidr", text)? } else { other.clone() };
            let Value::Cidr(other) = made else { return Err(EvalError::no_overload()) };
            Value::Bool(cidr.length <= other.length && cidr.contains(other.address))
        }
        (Value::Cidr(cidr), "prefixLength", []) => Value::Int(cidr.length.into()),
        (Value::Cidr(cidr), "masked", []) => Value::Cidr(cidr.masked()),
        (Value::Cidr(cidr), "ip", []) => Value::Ip(cidr.address),
        _ => return Err(EvalError::no_overload()),
    })
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}
