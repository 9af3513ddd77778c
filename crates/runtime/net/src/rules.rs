//! The few nftables statements we use, as a builder over register-level expressions.
//!
//! Rules are in an `inet` table; [`RuleBody::of`] starts those that read addresses, of one family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use nlink::netlink::nftables::{
    ByteorderOp, ChainName, CmpOp, CtKey, DynsetExpr, DynsetOp, Expr, ExthdrOp, Family as NftFamily, FibFlags,
    FibResult, LookupExpr, MasqExpr, MetaKey, NFTA_NAT_FAMILY, NFTA_NAT_FLAGS, NFTA_NAT_REG_ADDR_MAX,
    NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_PROTO_MAX, NFTA_NAT_REG_PROTO_MIN, NFTA_NAT_TYPE, NatType, NumgenKind,
    PayloadBase, RawExpr, Register, RtKey, SetDataType, SetElement, SetKeyType, TCPOPT_MAXSEG, Verdict,
};

use crate::{Cidr, Family};

/// Set on packets whose source must become the node's; the bit kube-proxy uses too, so that other
/// software that knows it keeps its hands off.
pub(crate) const MASQUERADE_MARK: u32 = 0x4000;

const RTN_LOCAL: u32 = 2;
const REJECT_ICMPX: u32 = 2;
const ICMPX_PORT_UNREACHABLE: u8 = 1;
/// Protocol and type.
const ICMP_REDIRECT: (u8, u8) = (1, 5);
const ICMPV6_REDIRECT: (u8, u8) = (58, 137);
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IFNAMSIZ: usize = 16;

/// Transport protocols that Services and host ports know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// From the API's spelling; absent means TCP.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|p| p.number() == number)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// The expressions of one rule, first to last, and the family of the addresses it reads.
#[derive(Debug, Clone)]
pub(crate) struct RuleBody {
    expressions: Vec<Expr>,
    family: Family,
}

/// Where a family has what in a packet, and where lookups put it: keys from word 0 on, values past the longest key.
struct Layout {
    source: u32,
    destination: u32,
    /// Bytes of an address.
    length: u32,
    /// Words of an address.
    words: usize,
    value: usize,
}

fn layout(family: Family) -> Layout {
    match family {
        Family::V4 => Layout { source: 12, destination: 16, length: 4, words: 1, value: 4 },
        Family::V6 => Layout { source: 8, destination: 24, length: 16, words: 4, value: 8 },
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn word(index: usize) -> Register {
    Register::word(index).expect("rules use the first sixteen words")
}

impl RuleBody {
    /// Reads no addresses.
    pub fn any() -> Self {
        Self { expressions: Vec::new(), family: Family::V4 }
    }

    /// Goes on for packets of this family only.
    pub fn of(family: Family) -> Self {
        let number = match family {
            Family::V4 => NFPROTO_IPV4,
            Family::V6 => NFPROTO_IPV6,
        };
        Self { expressions: Vec::new(), family }
            .push(Expr::Meta { dreg: word(0), key: MetaKey::NfProto })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![number] })
    }

    pub fn into_exprs(self) -> Vec<Expr> {
        self.expressions
    }

    fn push(mut self, expr: impl Into<Expr>) -> Self {
        self.expressions.push(expr.into());
        self
    }

    fn interface(self, key: MetaKey, op: CmpOp, name: &str) -> Self {
        let mut data = name.as_bytes().to_vec();
        data.resize(IFNAMSIZ, 0);
        self.push(Expr::Meta { dreg: word(0), key }).push(Expr::Cmp { sreg: word(0), op, data })
    }

    pub fn in_from(self, name: &str) -> Self {
        self.interface(MetaKey::IifName, CmpOp::Eq, name)
    }

    pub fn out_to(self, name: &str) -> Self {
        self.interface(MetaKey::OifName, CmpOp::Eq, name)
    }

    pub fn not_out_to(self, name: &str) -> Self {
        self.interface(MetaKey::OifName, CmpOp::Neq, name)
    }

    /// The rule must be of the network's family.
    fn address(self, offset: u32, op: CmpOp, cidr: Cidr) -> Self {
        debug_assert_eq!(self.family, cidr.family());
        let len = layout(self.family).length;
        let mut body = self.push(Expr::Payload { dreg: word(0), base: PayloadBase::Network, offset, len });
        if cidr != Cidr::host(cidr.network()) {
            let (mask, xor) = (octets(cidr.mask()), vec![0; len as usize]);
            body = body.push(Expr::Bitwise { sreg: word(0), dreg: word(0), len, mask, xor });
        }
        body.push(Expr::Cmp { sreg: word(0), op, data: octets(cidr.network()) })
    }

    pub fn from(self, cidr: Cidr) -> Self {
        let offset = layout(self.family).source;
        self.address(offset, CmpOp::Eq, cidr)
    }

    pub fn not_from(self, cidr: Cidr) -> Self {
        let offset = layout(self.family).source;
        self.address(offset, CmpOp::Neq, cidr)
    }

    pub fn to(self, cidr: Cidr) -> Self {
        let offset = layout(self.family).destination;
        self.address(offset, CmpOp::Eq, cidr)
    }

    pub fn not_to(self, cidr: Cidr) -> Self {
        let offset = layout(self.family).destination;
        self.address(offset, CmpOp::Neq, cidr)
    }

    fn fib_local(self, flags: FibFlags) -> Self {
        self.push(Expr::Fib { dreg: word(0), result: FibResult::AddrType, flags }).push(Expr::Cmp {
            sreg: word(0),
            op: CmpOp::Eq,
            data: RTN_LOCAL.to_ne_bytes().to_vec(),
        })
    }

    /// The destination is one of this node's addresses.
    pub fn aimed_at_node(self) -> Self {
        self.fib_local(FibFlags::DADDR)
    }

    /// The source is one of this node's addresses.
    pub fn sent_by_node(self) -> Self {
        self.fib_local(FibFlags::SADDR)
    }

    pub fn icmp_redirect(self) -> Self {
        let (protocol, kind) = match self.family {
            Family::V4 => ICMP_REDIRECT,
            Family::V6 => ICMPV6_REDIRECT,
        };
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::L4Proto })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![protocol] })
            .push(Expr::Payload { dreg: word(0), base: PayloadBase::Transport, offset: 0, len: 1 })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![kind] })
    }

    pub fn except_icmp(self) -> Self {
        let (protocol, _) = match self.family {
            Family::V4 => ICMP_REDIRECT,
            Family::V6 => ICMPV6_REDIRECT,
        };
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::L4Proto }).push(Expr::Cmp {
            sreg: word(0),
            op: CmpOp::Neq,
            data: vec![protocol],
        })
    }

    /// `meta l4proto udp udp dport port`
    pub fn aimed_at_udp_port(self, port: u16) -> Self {
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::L4Proto })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![Protocol::Udp.number()] })
            .push(Expr::Payload { dreg: word(0), base: PayloadBase::Transport, offset: 2, len: 2 })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: port.to_be_bytes().to_vec() })
    }

    /// The first packet of a TCP connection in either direction: `tcp flags & (syn | rst) == syn`
    pub fn tcp_syn(self) -> Self {
        const FLAGS: u32 = 13;
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::L4Proto })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![Protocol::Tcp.number()] })
            .push(Expr::Payload { dreg: word(0), base: PayloadBase::Transport, offset: FLAGS, len: 1 })
            .push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 1, mask: vec![SYN | RST], xor: vec![0] })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![SYN] })
    }

    /// `tcp option maxseg size set rt mtu`
    pub fn clamp_segments(self) -> Self {
        self.push(Expr::Rt { dreg: word(0), key: RtKey::TcpMss })
            .push(Expr::Byteorder { sreg: word(0), dreg: word(0), op: ByteorderOp::Hton, len: 2, size: 2 })
            .push(Expr::ExthdrSet {
                sreg: word(0),
                op: ExthdrOp::TcpOpt,
                exthdr_type: TCPOPT_MAXSEG,
                offset: 2,
                len: 2,
            })
    }

    fn load_source(self, at: usize) -> Self {
        let Layout { source: offset, length: len, .. } = layout(self.family);
        self.push(Expr::Payload { dreg: word(at), base: PayloadBase::Network, offset, len })
    }

    fn load_destination(self, at: usize) -> Self {
        let Layout { destination: offset, length: len, .. } = layout(self.family);
        self.push(Expr::Payload { dreg: word(at), base: PayloadBase::Network, offset, len })
    }

    /// Address, protocol and port, from word 0 on.
    fn load_target(self) -> Self {
        let after = layout(self.family).words;
        self.load_destination(0).load_protocol_port(after)
    }

    fn load_protocol_port(self, at: usize) -> Self {
        self.push(Expr::Meta { dreg: word(at), key: MetaKey::L4Proto }).push(Expr::Payload {
            dreg: word(at + 1),
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
        })
    }

    /// `ip daddr . meta l4proto . th dport vmap @map`
    pub fn vmap_destination(self, map: &str) -> Self {
        self.load_target().push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    /// `meta l4proto . th dport vmap @map`
    pub fn vmap_port(self, map: &str) -> Self {
        self.load_protocol_port(0).push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    /// `ip daddr . meta l4proto . th dport @set`
    pub fn destination_in(self, set: &str) -> Self {
        self.load_target().push(LookupExpr::new(set, word(0)))
    }

    /// Goes on for destinations that are in `map`, whatever it says of them.
    pub fn destination_mapped_in(self, map: &str) -> Self {
        self.load_target().lookup_value(map)
    }

    /// Goes on for destinations that have `count` in `counts`, and sends them to one of as many in `endpoints`.
    pub fn dnat_to_one_of(self, count: u32, counts: &str, endpoints: &str) -> Self {
        let Layout { words, value, .. } = layout(self.family);
        self.destination_mapped_in(counts)
            .push(Expr::Cmp { sreg: word(value), op: CmpOp::Eq, data: count.to_ne_bytes().to_vec() })
            // After address, protocol and port.
            .random(words + 2, count)
            .lookup_value(endpoints)
            .dnat_to_value()
    }

    /// `meta l4proto . th dport @set`
    pub fn port_in(self, set: &str) -> Self {
        self.load_protocol_port(0).push(LookupExpr::new(set, word(0)))
    }

    /// `ip saddr . ip daddr @set`
    pub fn pair_in(self, set: &str) -> Self {
        let after = layout(self.family).words;
        self.load_source(0).load_destination(after).push(LookupExpr::new(set, word(0)))
    }

    /// `dnat ip to ip daddr . meta l4proto . th dport map @map`
    pub fn dnat_by_destination(self, map: &str) -> Self {
        self.load_target().lookup_value(map).dnat_to_value()
    }

    /// `dnat ip to meta l4proto . th dport map @map`
    pub fn dnat_by_port(self, map: &str) -> Self {
        self.load_protocol_port(0).lookup_value(map).dnat_to_value()
    }

    /// Loads one of the `count` endpoints in `map` at random.
    pub fn random_endpoint(self, map: &str, count: u32) -> Self {
        self.random(0, count).lookup_value(map)
    }

    /// Goes where one of the `count` verdicts in `map` says, at random.
    pub fn random_verdict(self, map: &str, count: u32) -> Self {
        self.random(0, count).push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    fn random(self, at: usize, count: u32) -> Self {
        self.push(Expr::Numgen { dreg: word(at), kind: NumgenKind::Random, modulus: count, offset: 0 })
    }

    /// `ip saddr @set`
    pub fn source_in(self, set: &str) -> Self {
        self.load_source(0).push(LookupExpr::new(set, word(0)))
    }

    /// `ip daddr @set`
    pub fn destination_address_in(self, set: &str) -> Self {
        self.load_destination(0).push(LookupExpr::new(set, word(0)))
    }

    /// `ip saddr vmap @map`
    pub fn vmap_source(self, map: &str) -> Self {
        self.load_source(0).push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    /// `ip daddr vmap @map`
    pub fn vmap_destination_address(self, map: &str) -> Self {
        self.load_destination(0).push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    /// `meta l4proto`
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::L4Proto }).push(Expr::Cmp {
            sreg: word(0),
            op: CmpOp::Eq,
            data: vec![protocol.number()],
        })
    }

    /// `th dport <first>-<last>`; the protocol must have been compared before.
    pub fn port_within(self, ports: RangeInclusive<u16>) -> Self {
        let bound = |op, port: &u16| Expr::Cmp { sreg: word(0), op, data: port.to_be_bytes().to_vec() };
        self.push(Expr::Payload { dreg: word(0), base: PayloadBase::Transport, offset: 2, len: 2 })
            .push(bound(CmpOp::Gte, ports.start()))
            .push(bound(CmpOp::Lte, ports.end()))
    }

    /// Goes on for packets of connections that began earlier, and what belongs to them.
    pub fn of_known_connection(self) -> Self {
        const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
        let mask = ESTABLISHED_OR_RELATED.to_ne_bytes().to_vec();
        self.push(Expr::Ct { dreg: word(0), key: CtKey::State })
            .push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 4, mask, xor: vec![0; 4] })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Neq, data: vec![0; 4] })
    }

    /// Goes on for packets whose destination was changed on their way.
    pub fn sent_elsewhere(self) -> Self {
        const DESTINATION_CHANGED: u32 = 1 << 5;
        let mask = DESTINATION_CHANGED.to_ne_bytes().to_vec();
        self.push(Expr::Ct { dreg: word(0), key: CtKey::Status })
            .push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 4, mask, xor: vec![0; 4] })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Neq, data: vec![0; 4] })
    }

    /// `update @clients { ip saddr timeout … }`
    pub fn remember_client(self, clients: &str, timeout: Duration) -> Self {
        self.load_source(0).push(DynsetExpr::new(DynsetOp::Update, clients, word(0)).timeout(timeout))
    }

    /// `dnat to <endpoint>`
    pub fn dnat_to(self, endpoint: SocketAddr) -> Self {
        let Layout { words, value, .. } = layout(self.family);
        self.push(Expr::Immediate { dreg: word(value), data: octets(endpoint.ip()) })
            .push(Expr::Immediate { dreg: word(value + words), data: endpoint.port().to_be_bytes().to_vec() })
            .dnat_to_value()
    }

    fn lookup_value(self, map: &str) -> Self {
        let value = layout(self.family).value;
        self.push(LookupExpr::new(map, word(0)).dreg(word(value)))
    }

    /// `dnat to` the loaded address and port.
    pub fn dnat_to_value(self) -> Self {
        // Written by hand: the library loads constants for NAT only, not values from a map.
        const MAP_ADDRESS_AND_PORT: u32 = 3;
        let Layout { words, value, .. } = layout(self.family);
        let (address, port) = (word(value).wire(), word(value + words).wire());
        let family = match self.family {
            Family::V4 => NftFamily::Ip,
            Family::V6 => NftFamily::Ip6,
        };
        let attributes = [
            (NFTA_NAT_TYPE, NatType::Dnat as u32),
            (NFTA_NAT_FAMILY, family as u32),
            (NFTA_NAT_REG_ADDR_MIN, address),
            (NFTA_NAT_REG_ADDR_MAX, address),
            (NFTA_NAT_REG_PROTO_MIN, port),
            (NFTA_NAT_REG_PROTO_MAX, port),
            (NFTA_NAT_FLAGS, MAP_ADDRESS_AND_PORT),
        ];
        let mut data = Vec::with_capacity(attributes.len() * 8);
        for (kind, value) in attributes {
            data.extend_from_slice(&8u16.to_ne_bytes());
            data.extend_from_slice(&kind.to_ne_bytes());
            data.extend_from_slice(&value.to_be_bytes());
        }
        self.push(RawExpr::new("nat", data))
    }

    /// `meta mark set meta mark | MASQUERADE_MARK`
    pub fn mark_for_masquerade(self) -> Self {
        self.write_mark(!MASQUERADE_MARK, MASQUERADE_MARK)
    }

    pub fn marked_for_masquerade(self) -> Self {
        let mask = MASQUERADE_MARK.to_ne_bytes().to_vec();
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::Mark })
            .push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 4, mask: mask.clone(), xor: vec![0; 4] })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: mask })
    }

    pub fn clear_masquerade_mark(self) -> Self {
        self.write_mark(!MASQUERADE_MARK, 0)
    }

    fn write_mark(self, mask: u32, xor: u32) -> Self {
        let (mask, xor) = (mask.to_ne_bytes().to_vec(), xor.to_ne_bytes().to_vec());
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::Mark })
            .push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 4, mask, xor })
            .push(Expr::MetaSet { key: MetaKey::Mark, sreg: word(0) })
    }

    pub fn masquerade(self) -> Self {
        self.push(MasqExpr::new())
    }

    pub fn accept(self) -> Self {
        self.push(Expr::Verdict(Verdict::Accept))
    }

    pub fn drop(self) -> Self {
        self.push(Expr::Verdict(Verdict::Drop))
    }

    pub fn reject(self) -> Self {
        self.push(Expr::Reject { reject_type: REJECT_ICMPX, icmp_code: ICMPX_PORT_UNREACHABLE })
    }

    /// Back to the chain that jumped here.
    pub fn back(self) -> Self {
        self.push(Expr::Verdict(Verdict::Return))
    }

    pub fn jump(self, chain: &str) -> Self {
        self.push(Expr::Verdict(Verdict::JumpTo(chain_name(chain))))
    }

    pub fn goto(self, chain: &str) -> Self {
        self.push(Expr::Verdict(Verdict::GotoTo(chain_name(chain))))
    }
}

/// Chain names are ours: short, no NUL.
pub(crate) fn chain_name(name: &str) -> ChainName {
    ChainName::new(name).expect("our chain names are short")
}

/// Where a packet for a service arrives: address, protocol, port.
pub(crate) type Destination = (IpAddr, Protocol, u16);

/// The name of the set that holds for `family` what `name` says.
pub(crate) fn set_name(family: Family, name: &str) -> String {
    match family {
        Family::V4 => name.to_owned(),
        Family::V6 => format!("{name}{V6_SUFFIX}"),
    }
}

const V6_SUFFIX: &str = "_v6";

/// What [`set_name`] made it of.
pub(crate) fn split_set_name(name: &str) -> (Family, &str) {
    match name.strip_suffix(V6_SUFFIX) {
        Some(base) => (Family::V6, base),
        None => (Family::V4, name),
    }
}

pub(crate) fn address_type(family: Family) -> SetKeyType {
    match family {
        Family::V4 => SetKeyType::Ipv4Addr,
        Family::V6 => SetKeyType::Ipv6Addr,
    }
}

pub(crate) fn address_key(address: IpAddr) -> SetElement {
    match address {
        IpAddr::V4(address) => SetElement::ipv4(address),
        IpAddr::V6(address) => SetElement::ipv6(address),
    }
}

/// What [`address_key`] wrote, and what follows it.
fn split_address(family: Family, key: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => key.split_first_chunk::<4>().map(|(octets, rest)| (Ipv4Addr::from(*octets).into(), rest)),
        Family::V6 => key.split_first_chunk::<16>().map(|(octets, rest)| (Ipv6Addr::from(*octets).into(), rest)),
    }
}

/// What [`address_key`] wrote.
pub(crate) fn read_address(family: Family, key: &[u8]) -> Option<IpAddr> {
    split_address(family, key).map(|(address, _)| address)
}

pub(crate) fn destination_type(family: Family) -> SetKeyType {
    SetKeyType::Concat(vec![address_type(family), SetKeyType::InetProto, SetKeyType::InetService])
}

/// A destination and the number of one of its endpoints.
pub(crate) fn slot_type(family: Family) -> SetKeyType {
    let (proto, service) = (SetKeyType::InetProto, SetKeyType::InetService);
    SetKeyType::Concat(vec![address_type(family), proto, service, SetKeyType::Mark])
}

pub(crate) fn slot_key((address, protocol, port): Destination, slot: u32) -> SetElement {
    let (address, protocol) = (address_key(address), SetElement::inet_proto(protocol.number()));
    SetElement::concat([address, protocol, SetElement::port(port), SetElement::mark(slot)])
}

/// What [`slot_key`] wrote.
pub(crate) fn read_slot(family: Family, key: &[u8]) -> Option<(Destination, u32)> {
    let (_, rest) = split_address(family, key)?;
    let slot = rest.get(8..)?.first_chunk::<4>()?;
    Some((read_destination(family, key)?, u32::from_ne_bytes(*slot)))
}

/// What [`endpoint_value`] wrote.
pub(crate) fn read_endpoint(family: Family, value: &[u8]) -> Option<SocketAddr> {
    let (address, rest) = split_address(family, value)?;
    Some(SocketAddr::new(address, u16::from_be_bytes(*rest.first_chunk::<2>()?)))
}

pub(crate) fn port_type() -> SetKeyType {
    SetKeyType::Concat(vec![SetKeyType::InetProto, SetKeyType::InetService])
}

pub(crate) fn pair_type(family: Family) -> SetKeyType {
    SetKeyType::Concat(vec![address_type(family), address_type(family)])
}

pub(crate) fn endpoint_type(family: Family) -> SetDataType {
    SetDataType::Value(SetKeyType::Concat(vec![address_type(family), SetKeyType::InetService]))
}

pub(crate) fn destination_key((address, protocol, port): Destination) -> SetElement {
    SetElement::concat([address_key(address), SetElement::inet_proto(protocol.number()), SetElement::port(port)])
}

pub(crate) fn port_key(protocol: Protocol, port: u16) -> SetElement {
    SetElement::concat([SetElement::inet_proto(protocol.number()), SetElement::port(port)])
}

pub(crate) fn endpoint_value(endpoint: SocketAddr) -> SetElement {
    SetElement::concat([address_key(endpoint.ip()), SetElement::port(endpoint.port())])
}

/// What [`destination_key`] wrote.
pub(crate) fn read_destination(family: Family, key: &[u8]) -> Option<Destination> {
    let (address, rest) = split_address(family, key)?;
    let (protocol, port) = read_port(rest)?;
    Some((address, protocol, port))
}

/// What [`port_key`] wrote.
pub(crate) fn read_port(key: &[u8]) -> Option<(Protocol, u16)> {
    match key {
        [protocol, _, _, _, high, low, ..] => {
            Some((Protocol::from_number(*protocol)?, u16::from_be_bytes([*high, *low])))
        }
        _ => None,
    }
}
