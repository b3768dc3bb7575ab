//! Where a server is: scheme, host and port, read once by one strict grammar. What may be there:
//! `policy::hosted`. No name is looked up here.

use std::fmt;

use crate::domain::host::{BadHost, Host};

/// Scheme, host and port of a server (RFC 6454). What two readers could take for two servers is none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    scheme: Scheme,
    host: Host,
    port: u16,
}

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
}

/// Why a text names no server. None of them repeats the text: a credential may stand in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadOrigin {
    #[error("begins with https:// or http://, in lower case")]
    Scheme,
    #[error("{0}")]
    Host(#[from] BadHost),
    #[error("a port is a number from 1 to 65535 without zeros before it")]
    Port,
    #[error("a server is named without what comes after it: https://mcp.example.com, not its path")]
    Path,
    #[error(
        "has printable ASCII characters, no spaces and no backslashes; a path begins with a slash"
    )]
    Characters,
}

impl Origin {
    /// Reads `https://mcp.example.com` or `https://mcp.example.com:8443`, and nothing that goes on.
    pub fn parse(text: &str) -> Result<Self, BadOrigin> {
        let (origin, rest) = Self::split(text)?;
        if rest.is_empty() { Ok(origin) } else { Err(BadOrigin::Path) }
    }

    /// Where a URL leads to. Errors: also a URL that names somebody before its host.
    pub fn of_url(url: &str) -> Result<Self, BadOrigin> {
        let (origin, rest) = Self::split(url)?;
        // What some readers drop or take for a slash would move the end of the host.
        let plain = rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        if plain { Ok(origin) } else { Err(BadOrigin::Characters) }
    }

    /// The origin, and what follows it: nothing, or something that begins with `/`.
    fn split(text: &str) -> Result<(Self, &str), BadOrigin> {
        let (scheme, rest) = [Scheme::Https, Scheme::Http]
            .into_iter()
            .find_map(|scheme| Some((scheme, text.strip_prefix(scheme.prefix())?)))
            .ok_or(BadOrigin::Scheme)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // The colons of an IPv6 address stand within its brackets.
        let end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
        let (host, port) = match authority[end..].find(':') {
            Some(colon) => {
                let (host, port) = authority.split_at(end + colon);
                (host, self::port(&port[1..]).ok_or(BadOrigin::Port)?)
            }
            None => (authority, scheme.port()),
        };
        Ok((Self { scheme, host: Host::parse(host)?, port }, path))
    }
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port: &u16| *port > 0 && port.to_string() == text)
}

impl Scheme {
    fn prefix(self) -> &'static str {
        match self {
            Self::Http => "http://",
            Self::Https => "https://",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scheme.prefix(), self.host)?;
        if self.port == self.scheme.port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> String {
        Origin::of_url(url).map_or_else(|error| format!("{error:?}"), |origin| origin.to_string())
    }

    #[test]
    fn a_url_leads_where_every_reader_takes_it() {
        for (url, expected) in [
            ("https://mcp.example.com", "https://mcp.example.com"),
            ("https://MCP.example.com.:443/a?b=c#d", "https://mcp.example.com"),
            ("https://mcp.example.com:8443/@me/x", "https://mcp.example.com:8443"),
            ("http://127.0.0.1:9/mcp", "http://127.0.0.1:9"),
            ("http://mcp.example.com:80/", "http://mcp.example.com"),
            ("https://[2606:0:0::1]:444/", "https://[2606::1]:444"),
        ] {
            assert_eq!(of(url), expected, "{url}");
        }
    }

    #[test]
    fn what_two_readers_could_take_for_two_servers_is_none() {
        for (url, expected) in [
            ("HTTPS://mcp.example.com", "Scheme"),
            (" https://mcp.example.com", "Scheme"),
            ("ftp://mcp.example.com", "Scheme"),
            ("https:mcp.example.com", "Scheme"),
            ("https:/\\mcp.example.com", "Scheme"),
            ("https://", "Host(Length)"),
            ("https:///mcp.example.com", "Host(Length)"),
            ("https://token@mcp.example.com/", "Host(Label)"),
            ("https://mcp.example.com\\@evil.test/", "Host(Label)"),
            ("https://mcp.example.com?@evil.test/", "Host(Label)"),
            ("https://mcp.example.com#@evil.test/", "Host(Label)"),
            ("https://mcp.example.com%2eevil.test/", "Host(Label)"),
            ("https://mcp.exam\tple.com/", "Host(Label)"),
            ("https://user:pass@evil.test/", "Port"),
            ("https://mcp.example.com:", "Port"),
            ("https://mcp.example.com:0", "Port"),
            ("https://mcp.example.com:+443", "Port"),
            ("https://mcp.example.com:0443", "Port"),
            ("https://mcp.example.com:65979", "Port"),
            ("https://mcp.example.com:443:443", "Port"),
            ("https://[::1]443/", "Host(Bracket)"),
            ("https://0x7f.1/", "Host(Number)"),
            ("https://mcp.example.com/a\\b", "Characters"),
            ("https://mcp.example.com/a b", "Characters"),
            ("https://mcp.example.com/\n", "Characters"),
        ] {
            assert_eq!(of(url), expected, "{url:?}");
        }
    }

    #[test]
    fn servers_are_the_same_only_by_scheme_host_and_port() {
        let wanted = Origin::parse("https://mcp.example.com").unwrap();
        assert_eq!(Origin::of_url("https://mcp.example.com:443/mcp"), Ok(wanted.clone()));
        for other in [
            "http://mcp.example.com/",
            "https://mcp.example.com:8443/",
            "https://mcp.example.com.evil.test/",
            "https://evilmcp.example.com/",
            "https://example.com/mcp.example.com",
        ] {
            assert_ne!(Origin::of_url(other), Ok(wanted.clone()), "{other}");
        }
        for text in ["https://mcp.example.com/", "https://mcp.example.com/mcp"] {
            assert_eq!(Origin::parse(text), Err(BadOrigin::Path), "{text}");
        }
    }
}
