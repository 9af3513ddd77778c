//! The short forms of ports and volumes.

/// One published or exposed port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Port {
    pub name: Option<String>,
    pub host_ip: Option<String>,
    pub published: Option<u16>,
    pub target: u16,
    pub protocol: Protocol,
    pub app_protocol: Option<String>,
    /// On each node that runs it, instead of in front of all.
    pub host_mode: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" | "" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(format!("unknown protocol {text:?}: tcp, udp or sctp")),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// `80`, `8080:80`, `127.0.0.1:8080:80/udp`, `[::1]:80:80`, `3000-3005:4000-4005`.
pub fn ports(text: &str) -> Result<Vec<Port>, String> {
    let wrong = || format!("{text:?} is no port: [[IP:]PUBLISHED:]TARGET[/PROTOCOL]");
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = Protocol::parse(protocol)?;
    let (front, target) = match rest.rsplit_once(':') {
        Some((front, target)) => (Some(front), target),
        None => (None, rest),
    };
    let (host_ip, published) = match front {
        None => (None, None),
        Some(front) => match front.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
            Some((address, after)) => (Some(address), after.strip_prefix(':')),
            None => match front.rsplit_once(':') {
                Some((address, published)) => (Some(address), Some(published)),
                None => (None, Some(front)),
            },
        },
    };
    if host_ip.is_some_and(|address| address.parse::<std::net::IpAddr>().is_err()) {
        return Err(wrong());
    }
    let targets = range(target).ok_or_else(wrong)?;
    let published = match published.filter(|text| !text.is_empty()) {
        Some(text) => Some(range(text).ok_or_else(wrong)?),
        None => None,
    };
    let one = |target, published| Port {
        host_ip: host_ip.map(str::to_owned),
        published,
        target,
        protocol,
        ..Port::default()
    };
    match published {
        None => Ok(targets.map(|target| one(target, None)).collect()),
        Some(published) if published.len() == targets.len() => {
            Ok(targets.zip(published).map(|(target, published)| one(target, Some(published))).collect())
        }
        // Any of a range for one port: the first.
        Some(published) if targets.len() == 1 => {
            Ok(targets.map(|target| one(target, Some(*published.start()))).collect())
        }
        Some(_) => Err(format!("{text:?}: the ranges have different lengths")),
    }
}

pub fn range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first > 0 && first <= last).then_some(first..=last)
}

/// What a short volume says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Volume {
    pub source: Option<String>,
    pub target: String,
    pub options: Vec<String>,
}

impl Volume {
    /// A path on the host rather than the name of a volume.
    pub fn is_bind(&self) -> bool {
        self.source.as_deref().is_some_and(is_path)
    }
}

pub fn is_path(source: &str) -> bool {
    source.starts_with(['.', '/', '~'])
}

/// `/data`, `name:/data`, `./here:/there:ro,z`.
pub fn volume(text: &str) -> Result<Volume, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] => (Some(*source), *target, ""),
        [source, target, options] => (Some(*source), *target, *options),
        _ => return Err(format!("{text:?} is no volume: [SOURCE:]TARGET[:OPTIONS]")),
    };
    if !target.starts_with('/') || source == Some("") {
        return Err(format!("{text:?} is no volume: [SOURCE:]TARGET[:OPTIONS], the target an absolute path"));
    }
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    Ok(Volume { source: source.map(str::to_owned), target: target.to_owned(), options })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let all = ports(text).unwrap_or_else(|error| panic!("{error}"));
        all.iter()
            .map(|port| format!("{:?} {:?} {} {}", port.host_ip, port.published, port.target, port.protocol.name()))
            .collect()
    }

    #[test]
    fn short_ports() {
        assert_eq!(shown("80"), ["None None 80 TCP"]);
        assert_eq!(shown("127.0.0.1:8080:80/udp"), ["Some(\"127.0.0.1\") Some(8080) 80 UDP"]);
        assert_eq!(shown("127.0.0.1::80"), ["Some(\"127.0.0.1\") None 80 TCP"]);
        assert_eq!(shown("[::1]:81:80"), ["Some(\"::1\") Some(81) 80 TCP"]);
        assert_eq!(shown("3000-3001:4000-4001"), ["None Some(3000) 4000 TCP", "None Some(3001) 4001 TCP"]);
        assert_eq!(shown("9000-9005:80"), ["None Some(9000) 80 TCP"]);
        for wrong in ["", "x", "0", "80:", "1-2:1-3", "80/icmp", "a:1:2", "70000"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn short_volumes() {
        assert_eq!(volume("/data").unwrap().source, None);
        let bound = volume("./a:/b:ro,z").unwrap();
        assert!(bound.is_bind() && bound.options == ["ro", "z"]);
        assert!(!volume("data:/b").unwrap().is_bind());
        assert!(volume("data:relative").is_err() && volume("").is_err());
    }
}
