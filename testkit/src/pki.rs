//! Certificates that hold for one test.

use std::{fmt, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

/// A certificate, and the key that proves it.
#[derive(Clone)]
pub struct Identity {
    /// In PEM.
    pub certificate: String,
    /// In PEM, as PKCS #8.
    pub key: String,
}

impl Identity {
    fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        vec![certificate.expect("what was made as PEM can be read as PEM")]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("what was made as PEM can be read as PEM")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// An authority that nobody trusts, unless they are told to.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = params("windlass-testkit CA", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("the system gives random bytes");
        Self(CertifiedIssuer::self_signed(params, key).expect("the parameters are good"))
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// An identity for a server on this machine.
    pub(crate) fn server(&self) -> Identity {
        self.issue(
            params("windlass-testkit server", &["127.0.0.1", "localhost"]),
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    /// An identity for a client.
    pub(crate) fn client(&self) -> Identity {
        self.issue(params("windlass-testkit client", &[]), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Accepts TLS with a [`server`](Self::server) identity, which clients answer with one of their own if
    /// `ask_client` is set.
    pub(crate) fn acceptor(&self, ask_client: bool, protocols: &[&str]) -> TlsAcceptor {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring speaks the default versions");
        let builder = if ask_client {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&self.pem())), provider()).build();
            builder.with_client_cert_verifier(verifier.expect("there is a root to trust"))
        } else {
            builder.with_no_client_auth()
        };
        let identity = self.server();
        let config = builder.with_single_cert(identity.certificates(), identity.key());
        let mut config = config.expect("the key is that of the certificate");
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    fn issue(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Identity {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("the system gives random bytes");
        let certificate = params.signed_by(&key, &self.0).expect("the parameters are good");
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

/// Connects with TLS to whom this authority trusts.
pub(crate) fn connector(ca_pem: &str, identity: Option<&Identity>, protocols: &[&str]) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions")
        .with_root_certificates(roots(ca_pem));
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.certificates(), identity.key())
            .expect("the key is that of the certificate"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Not that of the process, which is for the program under test to choose.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(pem: &str) -> RootCertStore {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is a certificate in PEM");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("an authority can be trusted");
    roots
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<_> = hosts.iter().map(|&it| it.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("the names are names or addresses");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
