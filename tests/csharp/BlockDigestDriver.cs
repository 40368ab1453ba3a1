using System;
using System.Collections.Generic;
using System.Globalization;

namespace TileCache.Client
{
    // Runs BlockDigestCore for test_block_digests.py. Lines of input:
    //   tile UUID SHA256 SECONDS NANOS   answered with the tile's digest; SHA256 is - if it is unknown
    //   block                            answered with the digest of the tiles since the block before
    internal static class BlockDigestDriver
    {
        private static void Main()
        {
            var records = new List<byte[]>();
            for (string line = Console.ReadLine(); line != null; line = Console.ReadLine())
            {
                string[] words = line.Split(' ');
                if (words[0] == "block")
                {
                    Console.WriteLine(BlockDigestCore.HexOf(BlockDigestCore.DigestBlock(records)));
                    records.Clear();
                    continue;
                }

                long seconds = long.Parse(words[3], CultureInfo.InvariantCulture);
                int nanos = int.Parse(words[4], CultureInfo.InvariantCulture);
                records.Add(BlockDigestCore.Record(words[1], words[2] == "-" ? "" : words[2], seconds, nanos));
                byte[] digest = BlockDigestCore.DigestTile(records[records.Count - 1]);
                Console.WriteLine(BlockDigestCore.HexOf(digest));
            }
        }
    }
}
