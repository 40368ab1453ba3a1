using System;
using System.Collections.Generic;

namespace TileCache.Client
{
    // Runs TileIdentityCore for test_identity_core.py. Arguments: the scheme. Lines of input:
    //   tile NAME UUID, location NAME UUID   vectors; all are verified before the first key
    //   key ZOOM X Y SOURCE FLIGHT           answered with "TILE_UUID LOCATION_HASH"; FLIGHT is - for none
    internal static class Driver
    {
        private static void Main(string[] scheme)
        {
            var core = new TileIdentityCore(scheme[0], scheme[1], scheme[2], scheme[3], scheme[4].Split(','));
            var vectors = new Dictionary<string, List<KeyValuePair<string, string>>>
            {
                { "tile", new List<KeyValuePair<string, string>>() },
                { "location", new List<KeyValuePair<string, string>>() },
            };
            string line = Console.ReadLine();
            for (; line != null && !line.StartsWith("key "); line = Console.ReadLine())
            {
                string[] words = line.Split(' ');
                vectors[words[0]].Add(new KeyValuePair<string, string>(words[1], words[2]));
            }

            core.VerifyVectors(vectors["tile"], vectors["location"]);
            for (; line != null; line = Console.ReadLine())
            {
                Console.WriteLine(Derive(core, line.Split(' ')));
            }
        }

        private static string Derive(TileIdentityCore core, string[] key)
        {
            int zoom = int.Parse(key[1]), x = int.Parse(key[2]), y = int.Parse(key[3]);
            Guid? flight = key[5] == "-" ? (Guid?)null : TileIdentityCore.ParseUuid(key[5]);
            return core.DeriveTileUuid(zoom, x, y, key[4], flight) + " " + core.DeriveLocationHash(zoom, x, y);
        }
    }
}
