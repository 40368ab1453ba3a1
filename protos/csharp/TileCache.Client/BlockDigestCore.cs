using System;
using System.Collections.Generic;
using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Linq;
using System.Security.Cryptography;

namespace TileCache.Client
{
    /// <summary>
    /// Digests tiles and blocks as tilecache/v1/block_digest.proto defines it. It knows nothing of protobuf and keeps to
    /// C# 7, so that it can be compiled and tested wherever there is a C# compiler.
    /// </summary>
    internal static class BlockDigestCore
    {
        private const int ContentBytes = 32;

        /// <summary>What is digested of a tile; begins with its id.</summary>
        /// <exception cref="ArgumentException">The id is not a UUID.</exception>
        public static byte[] Record(string tileUuid, string contentSha256, long seconds, int nanos)
        {
            string id = TileIdentityCore.ParseUuid(tileUuid).ToString("N", CultureInfo.InvariantCulture);
            byte[] content = IsKnown(contentSha256) ? BytesOf(contentSha256) : new byte[ContentBytes];
            byte[] capturedMicros = BitConverter.GetBytes((seconds * 1000000) + (nanos / 1000));
            if (BitConverter.IsLittleEndian)
            {
                Array.Reverse(capturedMicros);
            }

            return BytesOf(id).Concat(content).Concat(capturedMicros).ToArray();
        }

        /// <summary>The digest of a tile, from its record.</summary>
        public static byte[] DigestTile(byte[] record)
        {
            return Sha256(record);
        }

        /// <summary>The digest of all tiles of a block, from their records in any order.</summary>
        public static byte[] DigestBlock(IEnumerable<byte[]> records)
        {
            List<byte[]> sorted = records.ToList();
            sorted.Sort(Compare);
            return Sha256(sorted.SelectMany(record => record).ToArray());
        }

        /// <summary>Lower-case hexadecimal digits.</summary>
        public static string HexOf(byte[] bytes)
        {
            return string.Concat(bytes.Select(value => value.ToString("x2", CultureInfo.InvariantCulture)));
        }

        private static bool IsKnown(string contentSha256)
        {
            return contentSha256.Length == 2 * ContentBytes
                && contentSha256.All(digit => (digit >= '0' && digit <= '9') || (digit >= 'a' && digit <= 'f'));
        }

        private static int Compare(byte[] one, byte[] other)
        {
            for (int index = 0; index < one.Length; index++)
            {
                if (one[index] != other[index])
                {
                    return one[index].CompareTo(other[index]);
                }
            }

            return 0;
        }

        [SuppressMessage("Performance", "CA1850", Justification = "HashData is not there on every runtime.")]
        private static byte[] Sha256(byte[] bytes)
        {
            using (SHA256 sha256 = SHA256.Create())
            {
                return sha256.ComputeHash(bytes);
            }
        }

        private static byte[] BytesOf(string digits)
        {
            return Enumerable.Range(0, digits.Length / 2)
                .Select(index => Convert.ToByte(digits.Substring(2 * index, 2), 16))
                .ToArray();
        }
    }
}
