using System;
using System.Collections.Generic;
using System.Linq;
using Google.Protobuf.WellKnownTypes;
using TileCache.V1;

namespace TileCache.Client
{
    /// <summary>
    /// Digests of tiles and of blocks of tiles, which are equal on any machine. The definition and the locked vectors stand
    /// in tilecache/v1/block_digest.proto.
    /// </summary>
    public static class BlockDigests
    {
        /// <summary>The digest of a tile.</summary>
        /// <param name="tile">A tile as the daemon answers it.</param>
        /// <returns>32 bytes; <c>BlockDigest.tile_digests</c> has the first 8.</returns>
        /// <exception cref="ArgumentException">Its id is not a UUID.</exception>
        public static byte[] DigestTile(TileMetadata tile)
        {
            ArgumentNullException.ThrowIfNull(tile);
            return BlockDigestCore.DigestTile(Record(tile.TileUuid, tile.ContentSha256, tile.CapturedAt));
        }

        /// <summary>The digest of a block.</summary>
        /// <param name="tiles">All tiles of the block, in any order.</param>
        /// <returns>32 bytes, as in <c>BlockDigest.digest</c>.</returns>
        /// <exception cref="ArgumentException">An id is not a UUID.</exception>
        public static byte[] DigestBlock(IEnumerable<TileMetadata> tiles)
        {
            ArgumentNullException.ThrowIfNull(tiles);
            return BlockDigestCore.DigestBlock(
                tiles.Select(tile => Record(tile.TileUuid, tile.ContentSha256, tile.CapturedAt)));
        }

        /// <summary>Proves this code against the contract's locked vectors.</summary>
        /// <exception cref="InvalidOperationException">A vector is not met.</exception>
        public static void VerifyLockedVectors()
        {
            BlockDigestScheme scheme =
                BlockDigestReflection.Descriptor.GetOptions().GetExtension(BlockDigestExtensions.BlockDigest);
            if (scheme.Vectors.Count == 0)
            {
                throw new InvalidOperationException("The scheme carries no locked vectors.");
            }

            foreach (BlockDigestVector vector in scheme.Vectors)
            {
                var records = new List<byte[]>();
                foreach (TileDigestVector tile in vector.Tiles)
                {
                    byte[] record = Record(tile.TileUuid, tile.ContentSha256, tile.CapturedAt);
                    Verify(tile.TileUuid, BlockDigestCore.DigestTile(record), tile.Digest);
                    records.Add(record);
                }

                Verify("a block", BlockDigestCore.DigestBlock(records), vector.Digest);
            }
        }

        private static byte[] Record(string tileUuid, string contentSha256, Timestamp capturedAt)
        {
            return BlockDigestCore.Record(tileUuid, contentSha256, capturedAt.Seconds, capturedAt.Nanos);
        }

        private static void Verify(string name, byte[] digest, string locked)
        {
            string derived = BlockDigestCore.HexOf(digest);
            if (derived != locked)
            {
                throw new InvalidOperationException(name + " gives " + derived + ", but " + locked + " is locked.");
            }
        }
    }
}
