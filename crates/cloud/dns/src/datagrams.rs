//! Datagrams many at a time (recvmmsg(2), sendmmsg(2)): under load one call into the kernel moves a whole batch.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams per call.
pub const BATCH: usize = 32;
/// No question is longer; what is, is cut, and then malformed.
const MAX_QUESTION: usize = 4096;

/// Room for questions, and what was received last.
pub struct Inbox {
    bytes: Vec<u8>,
    senders: Vec<libc::sockaddr_storage>,
    lengths: [usize; BATCH],
}

impl Inbox {
    pub fn new() -> Self {
        // SAFETY: a socket address of all zeroes is a valid one, of no family.
        let nobody: libc::sockaddr_storage = unsafe { zeroed() };
        Self { bytes: vec![0; BATCH * MAX_QUESTION], senders: vec![nobody; BATCH], lengths: [0; BATCH] }
    }

    /// Receives what is there, and returns how many datagrams that were: one at least.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing. Others are about a datagram sent earlier; the socket is fine.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
        let rooms = self.bytes.chunks_exact_mut(MAX_QUESTION).zip(&mut self.senders);
        for ((piece, header), (room, sender)) in pieces.iter_mut().zip(&mut headers).zip(rooms) {
            let piece = piece.write(libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() });
            header.write(message(sender, size_of::<libc::sockaddr_storage>(), piece));
        }
        // SAFETY: all headers are initialised and lead to memory of `self` and of this function, which outlives the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr().cast(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (length, header) in self.lengths.iter_mut().zip(&headers[..received]) {
            // SAFETY: initialised above.
            *length = unsafe { header.assume_init_ref() }.msg_len as usize;
        }
        Ok(received)
    }

    /// One of those received last; `None` if its sender has no address to answer to.
    pub fn question(&self, index: usize) -> Option<(&[u8], SocketAddr)> {
        let begin = index * MAX_QUESTION;
        Some((&self.bytes[begin..begin + self.lengths[index]], address(&self.senders[index])?))
    }
}

/// Sends the parts of `bytes` to their receivers, and returns how many it came to.
///
/// # Errors
/// About the first of them: `WouldBlock` if there is no room now.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], parts: &[(Range<usize>, SocketAddr)]) -> io::Result<usize> {
    let count = parts.len().min(BATCH);
    let mut receivers = [const { MaybeUninit::<libc::sockaddr_storage>::uninit() }; BATCH];
    let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
    let rooms = receivers.iter_mut().zip(&mut pieces).zip(&mut headers);
    for (((receiver, piece), header), (range, to)) in rooms.zip(&parts[..count]) {
        let part = &bytes[range.clone()];
        // The kernel only reads through it.
        let piece = piece.write(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
        let (receiver, length) = raw_address(*to, receiver);
        header.write(message(receiver, length, piece));
    }
    // SAFETY: the first `count` headers are initialised and lead to memory that outlives the call.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            libc::c_uint::try_from(count).unwrap_or(0),
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn message(peer: &mut libc::sockaddr_storage, length: usize, piece: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: a message header of all zeroes is a valid, empty one.
    let mut message: libc::mmsghdr = unsafe { zeroed() };
    message.msg_hdr.msg_name = ptr::from_mut(peer).cast();
    message.msg_hdr.msg_namelen = libc::socklen_t::try_from(length).unwrap_or(0);
    message.msg_hdr.msg_iov = piece;
    message.msg_hdr.msg_iovlen = 1;
    message
}

fn address(raw: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(raw.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what it is, and the storage is large enough and aligned for all of them.
            let raw = unsafe { &*ptr::from_ref(raw).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { &*ptr::from_ref(raw).cast::<libc::sockaddr_in6>() };
            let (ip, port) = (Ipv6Addr::from(raw.sin6_addr.s6_addr), u16::from_be(raw.sin6_port));
            Some(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn raw_address(of: SocketAddr, room: &mut MaybeUninit<libc::sockaddr_storage>) -> (&mut libc::sockaddr_storage, usize) {
    // SAFETY: a socket address of all zeroes is a valid one, of no family.
    let raw = room.write(unsafe { zeroed() });
    let length = match of {
        SocketAddr::V4(of) => {
            // SAFETY: the storage is large enough and aligned for addresses of every family.
            let raw = unsafe { &mut *ptr::from_mut(raw).cast::<libc::sockaddr_in>() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = of.port().to_be();
            raw.sin_addr.s_addr = of.ip().to_bits().to_be();
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(of) => {
            // SAFETY: as above.
            let raw = unsafe { &mut *ptr::from_mut(raw).cast::<libc::sockaddr_in6>() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = of.port().to_be();
            raw.sin6_flowinfo = of.flowinfo();
            raw.sin6_addr.s6_addr = of.ip().octets();
            raw.sin6_scope_id = of.scope_id();
            size_of::<libc::sockaddr_in6>()
        }
    };
    (raw, length)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    /// More than a batch there and back, of both families: each answer reaches whom it is for.
    #[test]
    fn batches_reach_whom_they_are_for() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(local).unwrap();
            server.set_nonblocking(true).unwrap();
            let mut inbox = Inbox::new();
            assert_eq!(inbox.receive(server.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let clients: Vec<UdpSocket> = (0..BATCH + 5).map(|_| UdpSocket::bind(local).unwrap()).collect();
            for (index, client) in clients.iter().enumerate() {
                client.send_to(&vec![7; index], server.local_addr().unwrap()).unwrap();
            }
            let mut seen = BTreeSet::new();
            while seen.len() < clients.len() {
                let count = inbox.receive(server.as_fd()).unwrap();
                let (mut bytes, mut parts) = (Vec::new(), Vec::new());
                for index in 0..count {
                    let (question, from) = inbox.question(index).unwrap();
                    assert_eq!(from, clients[question.len()].local_addr().unwrap());
                    let begin = bytes.len();
                    bytes.extend(question.len().to_string().into_bytes());
                    parts.push((begin..bytes.len(), from));
                    seen.insert(question.len());
                }
                assert_eq!(send(server.as_fd(), &bytes, &parts).unwrap(), count);
            }
            for (index, client) in clients.iter().enumerate() {
                let mut reply = [0; 8];
                let length = client.recv(&mut reply).unwrap();
                assert_eq!(reply[..length], *index.to_string().as_bytes());
            }
        }
    }
}
