//! Callers from loopback are trusted, callers from elsewhere show a token.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::error::Refusal;
use crate::error::{Code, Error, Result};

/// The secret that callers from elsewhere show.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

// A token in a log is a token no longer.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Random bytes in a token; twice as many hex digits.
    const BYTES: usize = 32;

    /// Where the token of a state directory is.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("token")
    }

    /// The token of the state directory, made at the first start.
    pub fn load_or_create(state_dir: &Path) -> io::Result<Self> {
        let path = Self::path(state_dir);
        match fs::File::open(&path) {
            Ok(file) => Self::load(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(state_dir, &path),
            Err(error) => Err(error),
        }
    }

    fn load(mut file: fs::File) -> io::Result<Self> {
        let unusable = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            return Err(unusable("others may read it: chmod 600, or delete it for a new one"));
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let token = text.trim();
        if token.len() < Self::BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unusable("is no token: delete it for a new one"));
        }
        Ok(Self(token.into()))
    }

    fn create(state_dir: &Path, path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
        let mut bytes = [0; Self::BYTES];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        // Whole or not at all: a crash half-way must not leave half a token to be loaded.
        let partial = state_dir.join("token.new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        writeln!(file, "{token}")?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        fs::File::open(state_dir)?.sync_all()?;
        Ok(Self(token.into()))
    }

    /// Takes as long for a wrong token as for the right one.
    fn matches(&self, shown: &str) -> bool {
        let (own, shown) = (self.0.as_bytes(), shown.as_bytes());
        let different = own.iter().zip(shown).fold(0, |bits, (a, b)| std::hint::black_box(bits | (a ^ b)));
        own.len() == shown.len() && different == 0
    }
}

/// Refuses callers from elsewhere without the token.
pub async fn require_token(State(token): State<Option<Token>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    match check(token.as_ref(), peer, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            let mut response = Refusal(error).into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

/// A caller of unknown address is one from elsewhere.
fn check(token: Option<&Token>, peer: Option<IpAddr>, headers: &HeaderMap) -> Result<()> {
    if peer.is_some_and(|peer| peer.to_canonical().is_loopback()) {
        return Ok(());
    }
    let shown = (headers.get(header::AUTHORIZATION))
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    match (token, shown) {
        (Some(token), Some(shown)) if token.matches(shown) => Ok(()),
        (_, Some(_)) => Err(Error::new(Code::Unauthorized, "the token is not this worker's")
            .hint("the worker's log says at start where the token is")),
        (_, None) => Err(Error::new(Code::Unauthorized, "callers from other machines need a token")
            .hint("send Authorization: Bearer <token>; the worker's log says at start where the token is")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(authorization).unwrap())])
    }

    fn token() -> Token {
        Token("0123456789abcdef0123456789abcdef".into())
    }

    #[test]
    fn a_token_is_made_once_and_only_root_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = Token::load_or_create(&state).unwrap();
        assert_eq!(first.0.len(), 64);
        assert_eq!(Token::load_or_create(&state).unwrap(), first);
        assert_eq!(fs::metadata(Token::path(&state)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_others_can_read_or_that_is_empty_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = Token::path(dir.path());
        Token::load_or_create(dir.path()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Token::load_or_create(dir.path()).is_err());

        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Token::load_or_create(dir.path()).is_err());
    }

    #[test]
    fn loopback_needs_no_token() {
        for peer in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(
                check(Some(&token()), Some(peer.parse().unwrap()), &HeaderMap::new()),
                Ok(()),
                "{peer}"
            );
        }
    }

    #[test]
    fn elsewhere_needs_the_token_whole() {
        let peer = Some("10.0.0.9".parse().unwrap());
        let good = format!("Bearer {}", token().0);
        assert_eq!(check(Some(&token()), peer, &headers(&good)), Ok(()));
        assert_eq!(check(Some(&token()), peer, &headers(&good.to_lowercase())), Ok(()));
        for bad in
            [&good[..good.len() - 1], &format!("{good}0"), "Bearer", "Bearer ", "Basic eDp5", &token().0]
        {
            let refused = check(Some(&token()), peer, &headers(bad)).unwrap_err();
            assert_eq!(refused.code, Code::Unauthorized, "{bad}");
        }
        assert!(check(Some(&token()), peer, &HeaderMap::new()).is_err());
        assert!(check(None, peer, &headers(&good)).is_err());
        assert!(check(Some(&token()), None, &HeaderMap::new()).is_err());
    }

    #[test]
    fn a_token_is_not_in_the_debug_form() {
        assert_eq!(format!("{:?}", token()), "Token(..)");
    }
}
