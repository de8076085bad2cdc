//! argon2 in place: our own hashes, and those of others by whatever parameters they name.

use std::cell::RefCell;

use argon2::password_hash::{self, CustomizedPasswordHasher, PasswordHasher, Result as HashResult, phc};
use argon2::{Algorithm, Argon2, Block, Params, Version};

/// The OWASP password storage cheat sheet's first choice for argon2id with 19 MiB.
pub(super) const PARAMS: Params = match Params::new(19_456, 2, 1, None) {
    Ok(params) => params,
    Err(_) => panic!("argon2 refuses these parameters"),
};

/// argon2id in a memory that its thread keeps. Taken from the heap for each hash, and given back, 20 MiB leave holes into
/// which small things move, so that the next 20 MiB do not fit: after some dozen logins the process was larger by hundreds.
pub(super) struct Argon2InPlace {
    algorithm: Algorithm,
    version: Version,
    params: Params,
}

thread_local! {
    static MEMORY: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn argon2() -> Argon2InPlace {
    Argon2InPlace { algorithm: Algorithm::Argon2id, version: Version::V0x13, params: PARAMS }
}

impl PasswordHasher<phc::PasswordHash> for Argon2InPlace {
    fn hash_password_with_salt(&self, password: &[u8], salt: &[u8]) -> HashResult<phc::PasswordHash> {
        let params = &self.params;
        let argon2 = Argon2::new(self.algorithm, self.version, params.clone());
        let mut output = [0; phc::Output::MAX_LENGTH];
        let output = output
            .get_mut(..params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN))
            .ok_or(password_hash::Error::OutputSize)?;
        MEMORY.with_borrow_mut(|memory| {
            memory.resize(params.block_count().max(PARAMS.block_count()), Block::default());
            let blocks = &mut memory[..params.block_count()];
            let hashed = argon2.hash_password_into_with_memory(password, salt, output, blocks);
            // A stored hash may have asked for more than ours do.
            memory.truncate(PARAMS.block_count());
            memory.shrink_to_fit();
            hashed
        })?;
        Ok(phc::PasswordHash {
            algorithm: self.algorithm.ident(),
            version: Some(self.version.into()),
            params: phc::ParamsString::try_from(params)?,
            salt: Some(phc::Salt::new(salt)?),
            hash: Some(phc::Output::new(output)?),
        })
    }
}

/// What verifies a stored hash: by the parameters that it names.
impl CustomizedPasswordHasher<phc::PasswordHash> for Argon2InPlace {
    type Params = Params;

    fn hash_password_customized(
        &self,
        password: &[u8],
        salt: &[u8],
        algorithm: Option<&str>,
        version: Option<u32>,
        params: Params,
    ) -> HashResult<phc::PasswordHash> {
        let algorithm = algorithm.map(Algorithm::try_from).transpose()?.unwrap_or_default();
        let version = version.map(Version::try_from).transpose()?.unwrap_or_default();
        Self { algorithm, version, params }.hash_password_with_salt(password, salt)
    }
}
