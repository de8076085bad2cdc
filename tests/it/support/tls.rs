//! Certificates, and clients that trust them alone.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::{Certificate, ClientBuilder};
use tokio_rustls::rustls::crypto::ring;

/// An authority of the test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: Certificate,
}

/// A certificate for this machine, and its key, in two files.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = Certificate::from_pem(params.self_signed(&key).unwrap().pem().as_bytes()).unwrap();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// Writes a fresh pair into the folder, over what is there, and returns the certificate as DER too.
    pub fn issue(&self, folder: &Path) -> (Pair, Vec<u8>) {
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
        std::fs::write(&pair.certificate, certificate.pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        (pair, certificate.der().to_vec())
    }

    /// A client that trusts this authority and speaks what the server chooses.
    pub fn client(&self) -> ClientBuilder {
        plain_client().tls_certs_only([self.root.clone()]).tls_info(true)
    }
}

/// A client that trusts nobody, for clear text.
pub fn plain_client() -> ClientBuilder {
    // The first one stays.
    let _ = ring::default_provider().install_default();
    ClientBuilder::new().tls_certs_only([])
}
